// Sums and maxima over a block, in an order that is always the same.
#pragma once

#include <cmath>

#include "../lanes.cuh"

namespace mhicl::cuda {

// Of `values`, over all threads of the block, the first SUMS are added up and the rest replaced by their maximum, which
// passes over NaN; every thread gets them. `shared` has room for reduce_room of them, and may be used again after.
inline constexpr int reduce_room(int threads, int values) { return (threads / kWarp + 1) * values; }

template <int SUMS, int VALUES>
__device__ __forceinline__ void block_reduce(double (&values)[VALUES], double* shared) {
  const auto join = [](int which, double a, double b) { return which < SUMS ? a + b : std::fmax(a, b); };
  const int warps = int(blockDim.x) / kWarp;
#pragma unroll
  for (int v = 0; v < VALUES; ++v) {
    values[v] = v < SUMS ? sum_of_warp(values[v]) : largest_of_lanes<kWarp>(values[v]);
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp * VALUES + v] = values[v];
  }
  __syncthreads();
  for (int v = int(threadIdx.x); v < VALUES; v += int(blockDim.x)) {
    double all = shared[v];
    for (int warp = 1; warp < warps; ++warp) all = join(v, all, shared[warp * VALUES + v]);
    shared[warps * VALUES + v] = all;
  }
  __syncthreads();
#pragma unroll
  for (int v = 0; v < VALUES; ++v) values[v] = shared[warps * VALUES + v];
  __syncthreads();
}

}  // namespace mhicl::cuda
