// attention_backward_rows, for one type.
#pragma once

#include "backward_launch.h"
#include "backward_rows.cuh"
#include "launch.cuh"

namespace mhicl::cuda {

// Calls run(Tile, rows, columns of what is summed).
template <class T, class Run>
cudaError_t with_rows_of(const BackwardCall<T>& call, const Run& run) {
  const auto& p = call.params.attention;
  int64_t columns = 1;
  if (call.params.grad_query.data != nullptr || call.params.grad_key.data != nullptr) columns = p.dim;
  if (call.params.grad_value.data != nullptr) columns = std::max(columns, p.value_dim);
  const int64_t rows = p.group * p.rows;
  return with_rows<T>(call.tf32, rows, columns, [&](auto tile) { return run(tile, rows, columns); });
}

template <class T>
bool rows_fit_one_block(const BackwardCall<T>& call, const DeviceLimits& limits) {
  bool fit = false;
  with_rows_of(call, [&](auto tile, int64_t rows, int64_t) {
    using Tile = decltype(tile);
    fit = rows <= Tile::own(threads_for<Tile, BackwardMemory<Tile, false>>(rows, call, limits));
    return cudaSuccess;
  });
  return fit;
}

template <class T>
cudaError_t attention_backward_rows(BackwardCall<T>& call, const DeviceLimits& limits, cudaStream_t stream) {
  return with_rows_of(call, [&](auto tile, int64_t rows, int64_t columns) {
    using Tile = decltype(tile);
    return launch_blocks<Tile, BackwardMemory<Tile, false>>(attention_backward_rows_kernel<Tile>, call, rows, columns,
                                                            limits, stream);
  });
}

}  // namespace mhicl::cuda
