// Vectors of floats or doubles of the instruction set's width: the compiler's vector types, with intrinsics where the
// language has no word for the instruction.

#define MHICL_INLINE inline __attribute__((always_inline))
#define MHICL_INLINE_LAMBDA __attribute__((always_inline))

// For loops over a tile: it stays in registers only if every index is a constant.
#if defined(__clang__)
#define MHICL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MHICL_UNROLL _Pragma("GCC unroll 32")
#endif

template <class T>
struct VectorTypes;
template <>
struct VectorTypes<float> {
  typedef float Value __attribute__((vector_size(MHICL_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(MHICL_VECTOR_BYTES)));
};
template <>
struct VectorTypes<double> {
  typedef double Value __attribute__((vector_size(MHICL_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(MHICL_VECTOR_BYTES)));
};

template <class T>
using Vec = typename VectorTypes<T>::Value;
template <class T>
using VecBits = typename VectorTypes<T>::Bits;

template <class T>
inline constexpr int kLanes = MHICL_VECTOR_BYTES / int(sizeof(T));

template <class T>
MHICL_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

template <class T>
MHICL_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
MHICL_INLINE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class T>
MHICL_INLINE Vec<T> select(VecBits<T> mask, Vec<T> yes, Vec<T> no) {
  return mask ? yes : no;
}

// a·b + c, fused wherever the instruction set can.
template <class T>
MHICL_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
#if defined(MHICL_ISA_AVX512)
  if constexpr (std::is_same_v<T, float>) return Vec<T>(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
  else return Vec<T>(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
#elif defined(MHICL_ISA_AVX2)
  if constexpr (std::is_same_v<T, float>) return Vec<T>(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
  else return Vec<T>(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
#else
  return a * b + c;
#endif
}

// The larger of the two; the second where either is NaN.
template <class T>
MHICL_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
#if defined(MHICL_ISA_AVX512)
  if constexpr (std::is_same_v<T, float>) return Vec<T>(_mm512_max_ps(__m512(a), __m512(b)));
  else return Vec<T>(_mm512_max_pd(__m512d(a), __m512d(b)));
#elif defined(MHICL_ISA_AVX2)
  if constexpr (std::is_same_v<T, float>) return Vec<T>(_mm256_max_ps(__m256(a), __m256(b)));
  else return Vec<T>(_mm256_max_pd(__m256d(a), __m256d(b)));
#else
  return select<T>(a > b, a, b);
#endif
}

// The first `count` lanes, 0 ≤ count ≤ kLanes: what a partial load or store touches.
template <class T>
struct Head {
#if defined(MHICL_ISA_AVX512)
  uint32_t mask;
  explicit Head(int64_t count) : mask((uint32_t(1) << count) - 1) {}
#elif defined(MHICL_ISA_AVX2)
  __m256i mask;
  explicit Head(int64_t count) {
    VecBits<T> lane;
    for (int i = 0; i < kLanes<T>; ++i) lane[i] = i < count ? -1 : 0;
    mask = __m256i(lane);
  }
#else
  int64_t count;
  explicit Head(int64_t count) : count(count) {}
#endif
};

// Loads only the head; the other lanes are 0.
template <class T>
MHICL_INLINE Vec<T> load(const T* p, Head<T> head) {
#if defined(MHICL_ISA_AVX512)
  if constexpr (std::is_same_v<T, float>) return Vec<T>(_mm512_maskz_loadu_ps(__mmask16(head.mask), p));
  else return Vec<T>(_mm512_maskz_loadu_pd(__mmask8(head.mask), p));
#elif defined(MHICL_ISA_AVX2)
  if constexpr (std::is_same_v<T, float>) return Vec<T>(_mm256_maskload_ps(p, head.mask));
  else return Vec<T>(_mm256_maskload_pd(p, head.mask));
#else
  Vec<T> v{};
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i < head.count) v[i] = p[i];
  }
  return v;
#endif
}

template <class T>
MHICL_INLINE void store(T* p, Vec<T> v, Head<T> head) {
#if defined(MHICL_ISA_AVX512)
  if constexpr (std::is_same_v<T, float>) _mm512_mask_storeu_ps(p, __mmask16(head.mask), __m512(v));
  else _mm512_mask_storeu_pd(p, __mmask8(head.mask), __m512d(v));
#elif defined(MHICL_ISA_AVX2)
  if constexpr (std::is_same_v<T, float>) _mm256_maskstore_ps(p, head.mask, __m256(v));
  else _mm256_maskstore_pd(p, head.mask, __m256d(v));
#else
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i < head.count) p[i] = v[i];
  }
#endif
}

// 0, 1, …, lanes − 1, twice: a vector loaded at `shift` holds (i + shift) mod lanes.
template <class Index, int LANES>
struct Cycle {
  Index lane[2 * LANES];
  constexpr Cycle() : lane{} {
    for (int i = 0; i < 2 * LANES; ++i) lane[i] = Index(i % LANES);
  }
};
template <class Index, int LANES>
inline constexpr Cycle<Index, LANES> kCycle{};

// Lane i of the result is lane (i + shift) mod kLanes of the operand, 0 ≤ shift < kLanes.
template <class T>
struct Rotation {
#if defined(MHICL_ISA_AVX512)
  __m512i index;
  explicit Rotation(int shift) {
    using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    index = _mm512_loadu_si512(kCycle<Index, kLanes<T>>.lane + shift);
  }
#elif defined(MHICL_ISA_AVX2)
  __m256i index;  // of 32-bit words, of which a double has two
  explicit Rotation(int shift) {
    const int32_t* words = kCycle<int32_t, 8>.lane + shift * int(sizeof(T) / 4);
    index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
  }
#else
  int shift;
  explicit Rotation(int shift) : shift(shift) {}
#endif
};

template <class T>
MHICL_INLINE Vec<T> rotate(Vec<T> v, Rotation<T> by) {
#if defined(MHICL_ISA_AVX512)
  if constexpr (std::is_same_v<T, float>) return Vec<T>(_mm512_permutexvar_ps(by.index, __m512(v)));
  else return Vec<T>(_mm512_permutexvar_pd(by.index, __m512d(v)));
#elif defined(MHICL_ISA_AVX2)
  return Vec<T>(_mm256_permutevar8x32_ps(__m256(v), by.index));
#else
  Vec<T> out;
  for (int i = 0; i < kLanes<T>; ++i) out[i] = v[(i + by.shift) % kLanes<T>];
  return out;
#endif
}
