// Division of non-negative 31-bit numbers by one that the host knows, by a multiplication.
#pragma once

#include <bit>
#include <cstdint>

#include "../philox.h"

namespace mhicl::cuda {

// ⌊n / d⌋ = (⌊n m / 2³²⌋ + n) / 2ˢ with 2ˢ⁻¹ < d ≤ 2ˢ and m = ⌊2³² (2ˢ − d) / d⌋ + 1, for 0 ≤ n < 2³¹, 1 ≤ d ≤ 2³¹ (T.
// Granlund, P. Montgomery, "Division by invariant integers using multiplication", PLDI 1994).
class Divisor {
 public:
  explicit Divisor(int64_t divisor)
      : divisor_(int(divisor)),
        shift_(std::bit_width(uint64_t(divisor) - 1)),
        multiplier_(uint32_t((((uint64_t{1} << shift_) - uint64_t(divisor)) << 32) / uint64_t(divisor) + 1)) {}

  MHICL_HOST_DEVICE int quotient(int n) const {
    return int((uint32_t(uint64_t(uint32_t(n)) * multiplier_ >> 32) + uint32_t(n)) >> shift_);
  }
  MHICL_HOST_DEVICE int remainder(int n, int quotient) const { return n - quotient * divisor_; }

 private:
  int divisor_, shift_;
  uint32_t multiplier_;
};

}  // namespace mhicl::cuda
