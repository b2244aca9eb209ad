// Which kernels a backward pass of attention takes.

#include "attention.h"
#include "backward_launch.h"

namespace mhicl::cuda {
namespace {

template <class Pointer>
bool wanted(const Operand<Pointer>& x) {
  return x.data != nullptr;
}

template <class T>
BackwardCall<T> call_of(const AttentionBackwardParams<T>& params, bool tf32) {
  const AttentionParams<T>& p = params.attention;
  return {.params = params,
          .query = source<T>(p.query, p.dim, p.storage),
          .key = source<T>(p.key, p.dim, p.storage),
          .value = source<T>(p.value, p.value_dim, p.storage),
          .grad_out = source<T>(params.grad_out, p.value_dim, p.storage),
          .wide_query = four_at_once(params.grad_query, p.dim),
          .wide_key = four_at_once(params.grad_key, p.dim),
          .wide_value = four_at_once(params.grad_value, p.value_dim),
          .tf32 = tf32,
          .grid = {}};
}

}  // namespace

template <class T>
cudaError_t attention_backward(const AttentionBackwardParams<T>& params, bool tf32, const DeviceLimits& limits,
                               cudaStream_t stream) {
  BackwardCall<T> by_rows = call_of(params, tf32);
  const bool of_keys = wanted(params.grad_key) || wanted(params.grad_value);
  const bool apart = of_keys && !rows_fit_one_block(by_rows, limits);
  if (apart) by_rows.params.grad_key = by_rows.params.grad_value = {};
  if (!apart || !wanted(params.grad_key)) by_rows.params.means = nullptr;
  const auto& o = by_rows.params;
  if (wanted(o.grad_query) || wanted(o.grad_key) || wanted(o.grad_value) || o.grad_logits != nullptr ||
      o.means != nullptr) {
    const cudaError_t error = attention_backward_rows(by_rows, limits, stream);
    if (error != cudaSuccess) return error;
  }
  if (!apart) return cudaSuccess;
  BackwardCall<T> by_keys = call_of(params, tf32);
  by_keys.params.known_means = by_keys.params.means;
  return attention_backward_keys(by_keys, limits, stream);
}

template cudaError_t attention_backward(const AttentionBackwardParams<float>&, bool, const DeviceLimits&, cudaStream_t);
template cudaError_t attention_backward(const AttentionBackwardParams<double>&, bool, const DeviceLimits&,
                                        cudaStream_t);

}  // namespace mhicl::cuda
