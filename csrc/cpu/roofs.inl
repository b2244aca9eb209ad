// What the processor can do at best: fused multiply-adds whose operands never leave the registers.

#if defined(MHICL_ISA_AVX512)
inline constexpr int kBurst = 24;
#else
inline constexpr int kBurst = 12;
#endif

// Runs `rounds` rounds of independent multiply-adds; returns how many additions and multiplications that was.
template <class T>
double fma_burst(int64_t rounds, T* sink) {
  Vec<T> acc[kBurst];
  MHICL_UNROLL
  for (int i = 0; i < kBurst; ++i) acc[i] = broadcast<T>(T(i));
  // Through memory the compiler does not know them, and x ← 0.5 x + 1 neither overflows nor underflows.
  volatile T half = T(0.5), one = T(1);
  const Vec<T> factor = broadcast<T>(half), addend = broadcast<T>(one);
  for (int64_t k = 0; k < rounds; ++k) {
    MHICL_UNROLL
    for (int i = 0; i < kBurst; ++i) acc[i] = fma<T>(acc[i], factor, addend);
  }
  Vec<T> sum{};
  MHICL_UNROLL
  for (int i = 0; i < kBurst; ++i) sum += acc[i];
  store(sink, sum);
  return 2.0 * double(rounds) * kBurst * kLanes<T>;
}
