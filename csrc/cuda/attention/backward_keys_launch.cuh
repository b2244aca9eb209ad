// attention_backward_keys, for one type.
#pragma once

#include "backward_keys.cuh"
#include "backward_launch.h"
#include "launch.cuh"

namespace mhicl::cuda {

template <class T>
cudaError_t attention_backward_keys(BackwardCall<T>& call, const DeviceLimits& limits, cudaStream_t stream) {
  const auto& p = call.params.attention;
  const int64_t of_keys = call.params.grad_key.data == nullptr ? 0 : p.dim;
  const int64_t of_values = call.params.grad_value.data == nullptr ? 0 : p.value_dim;
  const int64_t columns = std::max(of_keys, of_values);
  return with_many<T>(call.tf32, columns, [&](auto tile) {
    using Tile = decltype(tile);
    return launch_blocks<Tile, BackwardMemory<Tile, true>>(attention_backward_keys_kernel<Tile>, call, p.keys, columns,
                                                           limits, stream);
  });
}

}  // namespace mhicl::cuda
