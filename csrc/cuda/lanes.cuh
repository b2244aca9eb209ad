// Sums and maxima over neighbouring lanes of a warp, by shuffles that all lanes take part in.
#pragma once

#include <cmath>

#include "device.h"

namespace mhicl::cuda {

// Over LANES of them that are STEP apart, both powers of two; each gets the result.
template <int LANES, int STEP = 1, class T>
__device__ __forceinline__ T sum_of_lanes(T x) {
#pragma unroll
  for (int apart = LANES / 2 * STEP; apart >= STEP; apart /= 2) x += __shfl_xor_sync(kAllLanes, x, apart);
  return x;
}

// NaN is passed over.
template <int LANES, int STEP = 1, class T>
__device__ __forceinline__ T largest_of_lanes(T x) {
#pragma unroll
  for (int apart = LANES / 2 * STEP; apart >= STEP; apart /= 2) x = std::fmax(x, __shfl_xor_sync(kAllLanes, x, apart));
  return x;
}

template <class T>
__device__ __forceinline__ T sum_of_warp(T x) {
  return sum_of_lanes<kWarp>(x);
}

}  // namespace mhicl::cuda
