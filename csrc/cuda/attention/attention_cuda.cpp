// General attention on the GPU: checks, outputs, launches. The values of key_lengths are not looked at here, which would
// wait for the device: the kernels clamp them.

#include "../../attention_inputs.h"
#include "../binding.h"
#include "attention.h"

namespace mhicl::cuda {
namespace {

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) { return at::empty(sizes, options); }
at::Tensor sum_to(const at::Tensor& x, at::IntArrayRef sizes) { return at::sum_to(x, sizes); }

template <class T>
void run_forward(const AttentionInputs& in, const AttentionOutputs& out, cudaStream_t stream) {
  C10_CUDA_CHECK(attention_forward(forward_params<T>(in, out, {}), tf32_allowed(), device_limits(), stream));
}

template <class T>
void run_backward(const AttentionInputs& in, const AttentionCotangents& grad, const AttentionGradients& gradients,
                  cudaStream_t stream) {
  AttentionBackwardParams<T> params = backward_params<T>(in, grad, gradients, {});
  at::Tensor means;
  if (in.softmax() && params.grad_key.data != nullptr) {
    means = in.by_row(in.compute_type());
    params.means = means.mutable_data_ptr<T>();
  }
  C10_CUDA_CHECK(attention_backward(params, tf32_allowed(), device_limits(), stream));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const std::optional<at::Tensor>& mask,
    const std::optional<at::Tensor>& key_lengths, const at::Scalar& scale, bool causal, std::string activation,
    bool want_lse, bool want_weights) {
  const Place place(query);
  const AttentionInputs in = attention_inputs(query, key, value, mask, key_lengths, scale, causal, activation);
  const AttentionOutputs out = attention_outputs(in, want_lse, want_weights, empty);
  const bool in_double = in.compute_type() == at::kDouble;
  if (!in.empty()) (in_double ? run_forward<double> : run_forward<float>)(in, out, place.stream());
  return {out.out, out.lse, out.weights, out.stats};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention_backward_of(
    const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
    const std::optional<at::Tensor>& grad_weights, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& key_lengths,
    const at::Tensor& stats, const at::Scalar& scale, bool causal, std::string activation, std::array<bool, 4> needs) {
  const Place place(query);
  const AttentionInputs in = attention_inputs(query, key, value, mask, key_lengths, scale, causal, activation);
  const AttentionCotangents grad = attention_cotangents(in, grad_out, grad_lse, grad_weights, stats);
  const AttentionGradients gradients = attention_gradients(in, needs, empty);
  const bool in_double = in.compute_type() == at::kDouble;
  if (!in.empty()) (in_double ? run_backward<double> : run_backward<float>)(in, grad, gradients, place.stream());
  return as_returned(in, gradients, sum_to);
}

}  // namespace
}  // namespace mhicl::cuda

MHICL_GPU_OPERATORS(m) {
  m.impl("attention", mhicl::cuda::attention);
  m.impl("attention_backward", mhicl::cuda::attention_backward_of);
}
