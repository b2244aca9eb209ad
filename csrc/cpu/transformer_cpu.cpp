// A whole training step of an attention-only transformer, and its predictions: shares of the prompts go through forward and
// backward pass a few at a time, and no tensor of all prompts' states is ever made.

#include <limits>

#include <torch/library.h>

#include "fresh.h"
#include "slices.h"
#include "transformer/weights.h"

namespace mhicl {
namespace {

template <class T>
std::tuple<at::Tensor, std::vector<at::Tensor>> step(const TransformerInputs& in, const at::Tensor& target) {
  const TransformerWeights<T> weights(in);
  TransformerParams<T> params = weights.params();
  const at::Tensor of_target = target.contiguous();
  const int64_t predictions = of_target.numel(), size = TransformerSums<T>::size(params);
  params.target = of_target.const_data_ptr<T>();
  params.residual_factor = T(2.0 / double(predictions));
  const at::Tensor loss = at::empty({}, in.tokens.options().dtype(at::kDouble));
  if (predictions == 0) {  // the mean of nothing
    loss.fill_(std::numeric_limits<double>::quiet_NaN());
    return {loss, weights.gradients(at::zeros({size}, in.tokens.options()))};
  }
  const Slices slices(params.n_prompts, in.tokens.numel(), size);
  const at::Tensor partial = fresh({slices.count, size}, in.tokens.options());
  std::vector<double> losses(slices.count);
  for_slices(slices, [&](int64_t slice, int64_t begin, int64_t end) {
    kernels().transformer<T>().step(params, begin, end, partial.mutable_data_ptr<T>() + slice * size, &losses[slice]);
  });
  double total = 0;
  for (const double of_slice : losses) total += of_slice;
  loss.fill_(total / double(predictions));
  return {loss, weights.gradients(sum_slices<T>(partial))};
}

template <class T>
at::Tensor predict(const TransformerInputs& in) {
  const TransformerWeights<T> weights(in);
  const TransformerParams<T> params = weights.params();
  const at::Tensor predictions = at::empty({params.n_prompts, params.queries}, in.tokens.options());
  if (predictions.numel() == 0) return predictions;
  constexpr int64_t block = 16;  // prompts that pay for a call's memory
  for_slices(Slices((params.n_prompts + block - 1) / block), [&](int64_t, int64_t begin, int64_t end) {
    kernels().transformer<T>().predict(params, begin * block, std::min(end * block, params.n_prompts),
                                       predictions.mutable_data_ptr<T>());
  });
  return predictions;
}

std::tuple<at::Tensor, std::vector<at::Tensor>> transformer_step(const at::Tensor& tokens, const at::Tensor& target,
                                                                 at::TensorList weights, at::IntArrayRef heads,
                                                                 at::IntArrayRef head_dims, at::ArrayRef<double> scales,
                                                                 std::string activation) {
  TORCH_CHECK_VALUE(target.dim() == 2, "target must be (prompts, queries), got shape ", target.sizes());
  const TransformerInputs in =
      transformer_inputs(tokens, target.size(1), weights, heads, head_dims, scales, activation);
  check_like("target", target, {in.n_prompts(), in.queries}, tokens.scalar_type());
  return tokens.scalar_type() == at::kDouble ? step<double>(in, target) : step<float>(in, target);
}

at::Tensor transformer_predict(const at::Tensor& tokens, int64_t n_queries, at::TensorList weights,
                               at::IntArrayRef heads, at::IntArrayRef head_dims, at::ArrayRef<double> scales,
                               std::string activation) {
  const TransformerInputs in = transformer_inputs(tokens, n_queries, weights, heads, head_dims, scales, activation);
  return tokens.scalar_type() == at::kDouble ? predict<double>(in) : predict<float>(in);
}

}  // namespace
}  // namespace mhicl

TORCH_LIBRARY_IMPL(mhicl, CPU, m) {
  m.impl("transformer_step", mhicl::transformer_step);
  m.impl("transformer_predict", mhicl::transformer_predict);
}
