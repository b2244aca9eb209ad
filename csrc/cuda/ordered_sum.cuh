// Long sums by one thread.
#pragma once

#include "device.h"

namespace mhicl::cuda {

// Σ of value(n) over [begin, end) from `sum` on, in order; so many at a time are fetched before they are added.
template <class T, class Value>
__device__ __forceinline__ T sum_in_order(T sum, int64_t begin, int64_t end, const Value& value) {
  constexpr int together = 16;
  int64_t n = begin;
  for (; n + together <= end; n += together) {
    T fetched[together];
#pragma unroll
    for (int i = 0; i < together; ++i) fetched[i] = value(n + i);
#pragma unroll
    for (int i = 0; i < together; ++i) sum += fetched[i];
  }
  for (; n < end; ++n) sum += value(n);
  return sum;
}

}  // namespace mhicl::cuda
