// attention_forward, for one type.
#pragma once

#include "attention.h"
#include "forward.cuh"
#include "launch.cuh"

namespace mhicl::cuda {

template <class T>
cudaError_t attention_forward(const AttentionForwardParams<T>& params, bool tf32, const DeviceLimits& limits,
                              cudaStream_t stream) {
  const AttentionParams<T>& p = params.attention;
  ForwardCall<T> call = {.params = params,
                         .query = source<T>(p.query, p.dim, p.storage),
                         .key = source<T>(p.key, p.dim, p.storage),
                         .value = source<T>(p.value, p.value_dim, p.storage),
                         .wide_out = four_at_once(params.out, p.value_dim),
                         .grid = {}};
  const int64_t rows = p.group * p.rows;
  return with_rows<T>(tf32, rows, p.value_dim, [&](auto tile) {
    using Tile = decltype(tile);
    return launch_blocks<Tile, ForwardMemory<Tile>>(attention_forward_kernel<Tile>, call, rows, p.value_dim, limits,
                                                    stream);
  });
}

}  // namespace mhicl::cuda
