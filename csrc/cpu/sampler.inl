// The sampler: Philox blocks in the lanes of vectors, Box-Muller, and prompts made of them. The definition is
// mhicl_fast/sampling.py.

template <class T>
struct WordTypes {
  typedef uint32_t Unsigned __attribute__((vector_size(4 * kLanes<T>)));
  typedef int32_t Signed __attribute__((vector_size(4 * kLanes<T>)));
};

// As many 32-bit words as a Vec<T> has lanes.
template <class T>
using VecWords = typename WordTypes<T>::Unsigned;

template <class T>
MHICL_INLINE VecBits<T> to_bits(Vec<T> x) {
  return VecBits<T>(x);
}

template <class T>
MHICL_INLINE Vec<T> from_bits(VecBits<T> bits) {
  return Vec<T>(bits);
}

template <class T>
MHICL_INLINE Vec<T> to_signed(VecWords<T> words) {
  return __builtin_convertvector((typename WordTypes<T>::Signed)words, Vec<T>);
}

template <class T>
MHICL_INLINE VecBits<T> top_bit(VecWords<T> words) {
  return __builtin_convertvector((typename WordTypes<T>::Signed)words >> 31, VecBits<T>);
}

template <class T>
MHICL_INLINE Vec<T> flip_sign(Vec<T> x, VecWords<T> words) {
  constexpr int widening = 8 * int(sizeof(T)) - 32;
  const VecWords<T> sign = words & (uint32_t(1) << 31);
  return Vec<T>(VecBits<T>(x) ^ (__builtin_convertvector(sign, VecBits<T>) << widening));
}

template <class T>
MHICL_INLINE Vec<T> square_root(Vec<T> x) {
#if defined(MHICL_ISA_AVX512)
  if constexpr (std::is_same_v<T, float>) return Vec<T>(_mm512_sqrt_ps(__m512(x)));
  else return Vec<T>(_mm512_sqrt_pd(__m512d(x)));
#elif defined(MHICL_ISA_AVX2)
  if constexpr (std::is_same_v<T, float>) return Vec<T>(_mm256_sqrt_ps(__m256(x)));
  else return Vec<T>(_mm256_sqrt_pd(__m256d(x)));
#else
  Vec<T> root{};
  for (int i = 0; i < kLanes<T>; ++i) root[i] = std::sqrt(x[i]);
  return root;
#endif
}

#include "../box_muller.inl"

// The words of the 16 blocks of a group, in the order of the stream's elements.
struct alignas(64) GroupWords {
  uint32_t word[philox::kWords][philox::kLanes];
};

#if defined(MHICL_ISA_AVX512) || defined(MHICL_ISA_AVX2)

typedef uint64_t Wide __attribute__((vector_size(MHICL_VECTOR_BYTES)));

// Product of the low halves of the 64-bit lanes.
MHICL_INLINE Wide multiply_low_halves(Wide a, Wide b) {
#if defined(MHICL_ISA_AVX512)
  return Wide(_mm512_mul_epu32(__m512i(a), __m512i(b)));
#else
  return Wide(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#endif
}

MHICL_INLINE Wide exclusive_or(Wide a, Wide b, Wide c) {
#if defined(MHICL_ISA_AVX512)
  return Wide(_mm512_ternarylogic_epi64(__m512i(a), __m512i(b), __m512i(c), 0x96));
#else
  return a ^ b ^ c;
#endif
}

// A stream with the keys of all rounds, which it shares with the other streams of its seed.
struct Schedule {
  uint64_t counter1, counter2, counter3, key0[philox::kRounds], key1[philox::kRounds];

  explicit Schedule(const philox::Stream& stream)
      : counter1(stream.counter1), counter2(stream.counter2), counter3(stream.counter3) {
    for (uint32_t round = 0; round < philox::kRounds; ++round) {
      key0[round] = stream.key0 + round * philox::kKeyIncrement0;
      key1[round] = stream.key1 + round * philox::kKeyIncrement1;
    }
  }
  void turn_to(const philox::Stream& other) {
    counter1 = other.counter1;
    counter2 = other.counter2;
    counter3 = other.counter3;
  }
};

// Philox on one block in each 64-bit lane of N vectors, which take turns so that none waits for its multiplications.
// Only the low halves matter: the high ones fill with rubbish, which neither the multiplications nor the shifts let in.
template <int N>
MHICL_INLINE void philox_lanes(const Schedule& schedule, Wide (&c0)[N], Wide (&c1)[N], Wide (&c2)[N], Wide (&c3)[N]) {
  const Wide multiplier0 = philox::kMultiplier0 + Wide{}, multiplier1 = philox::kMultiplier1 + Wide{};
#pragma GCC unroll 10
  for (int round = 0; round < philox::kRounds; ++round) {
    const Wide key0 = schedule.key0[round] + Wide{}, key1 = schedule.key1[round] + Wide{};
    MHICL_UNROLL
    for (int i = 0; i < N; ++i) {
      const Wide product0 = multiply_low_halves(multiplier0, c0[i]);
      const Wide product1 = multiply_low_halves(multiplier1, c2[i]);
      c0[i] = exclusive_or(product1 >> 32, c1[i], key0);
      c1[i] = product1;
      c2[i] = exclusive_or(product0 >> 32, c3[i], key1);
      c3[i] = product0;
    }
  }
}

// The low halves of both, those of the first in even places.
MHICL_INLINE Wide join_low_halves(Wide even, Wide odd) {
#if defined(MHICL_ISA_AVX512)
  return Wide(_mm512_mask_shuffle_epi32(__m512i(even), 0xAAAA, __m512i(odd), _MM_PERM_CCAA));
#else
  return Wide(_mm256_blend_epi32(__m256i(even), _mm256_slli_epi64(__m256i(odd), 32), 0xAA));
#endif
}

inline constexpr int kBlocksOfPair = 2 * MHICL_VECTOR_BYTES / int(sizeof(uint64_t));

// Even blocks run in one vector and odd ones in another, so that joining their low halves puts blocks in order. Two
// such pairs at once, where the groups have them, are what the registers hold.
template <int GROUPS>
MHICL_INLINE void group_words(const Schedule& schedule, uint32_t group, GroupWords (&out)[GROUPS]) {
  static constexpr uint64_t even_numbers[] = {0, 2, 4, 6, 8, 10, 12, 14};
  constexpr int blocks = GROUPS * philox::kLanes, pairs = std::min(2, blocks / kBlocksOfPair);
  Wide evens;
  std::memcpy(&evens, even_numbers, sizeof evens);
  for (int first = 0; first < blocks; first += pairs * kBlocksOfPair) {
    Wide word[philox::kWords][2 * pairs];
    MHICL_UNROLL
    for (int i = 0; i < 2 * pairs; ++i) {
      word[0][i] = evens + uint64_t(group * philox::kLanes + first + i / 2 * kBlocksOfPair + i % 2);
      word[1][i] = schedule.counter1 + Wide{};
      word[2][i] = schedule.counter2 + Wide{};
      word[3][i] = schedule.counter3 + Wide{};
    }
    philox_lanes(schedule, word[0], word[1], word[2], word[3]);
    MHICL_UNROLL
    for (int i = 0; i < pairs; ++i) {
      const int block = first + i * kBlocksOfPair;
      for (int k = 0; k < philox::kWords; ++k) {
        const Wide joined = join_low_halves(word[k][2 * i], word[k][2 * i + 1]);
        std::memcpy(&out[block / philox::kLanes].word[k][block % philox::kLanes], &joined, sizeof joined);
      }
    }
  }
}

#else

struct Schedule : philox::Stream {
  explicit Schedule(const philox::Stream& stream) : philox::Stream(stream) {}
  void turn_to(const philox::Stream& other) { static_cast<philox::Stream&>(*this) = other; }
};

template <int GROUPS>
MHICL_INLINE void group_words(const Schedule& stream, uint32_t group, GroupWords (&out)[GROUPS]) {
  for (int j = 0; j < GROUPS * philox::kLanes; ++j) {
    const philox::Block block = philox::block(stream, group * philox::kLanes + j);
    for (int k = 0; k < philox::kWords; ++k) out[j / philox::kLanes].word[k][j % philox::kLanes] = block.word[k];
  }
}

#endif

template <class T>
MHICL_INLINE VecWords<T> load_words(const uint32_t* p) {
  VecWords<T> words;
  std::memcpy(&words, p, sizeof words);
  return words;
}

// What a stream's elements can be asked for as. Half a group is the two runs of 16 that words 0 and 1, or words 2 and
// 3, make: one pair of Box-Muller.
inline constexpr int kHalfGroup = philox::kGroup / 2;

template <class T>
struct StandardNormals {
  using Value = T;

  static MHICL_INLINE void half_group(const GroupWords& words, int half, T* out) {
    const uint32_t *a = words.word[2 * half], *b = words.word[2 * half + 1];
    for (int j = 0; j < philox::kLanes; j += kLanes<T>) {
      Vec<T> first, second;
      box_muller<T>(load_words<T>(a + j), load_words<T>(b + j), first, second);
      store(out + j, first);
      store(out + philox::kLanes + j, second);
    }
  }
};

struct RawWords {
  using Value = uint32_t;

  static MHICL_INLINE void half_group(const GroupWords& words, int half, uint32_t* out) {
    std::memcpy(out, words.word[2 * half], kHalfGroup * sizeof(uint32_t));
  }
};

// All elements of `batches` times GROUPS groups from `index` on. A function of its own, since inlined the compiler would
// first spread the keys over vectors in memory, which costs a short run a quarter of its time.
template <class Kind, int GROUPS>
__attribute__((noinline)) void whole_groups(const Schedule& schedule, uint32_t index, int64_t batches,
                                            typename Kind::Value* out) {
  for (; batches > 0; --batches, index += GROUPS, out += GROUPS * philox::kGroup) {
    GroupWords words[GROUPS];
    group_words(schedule, index, words);
    MHICL_UNROLL
    for (int half = 0; half < 2 * GROUPS; ++half) Kind::half_group(words[half / 2], half % 2, out + half * kHalfGroup);
  }
}

// Elements begin, …, end − 1 of GROUPS groups from `index` on; nothing is computed for a half that has none of them.
template <class Kind, int GROUPS>
void part_of_groups(const Schedule& schedule, uint32_t index, int64_t begin, int64_t end, typename Kind::Value* out) {
  GroupWords words[GROUPS];
  group_words(schedule, index, words);
  for (int64_t half = begin / kHalfGroup; half * kHalfGroup < end; ++half) {
    const int64_t offset = half * kHalfGroup;
    const int64_t from = std::max<int64_t>(begin - offset, 0), to = std::min<int64_t>(end - offset, kHalfGroup);
    if (to - from == kHalfGroup) {
      Kind::half_group(words[half / 2], int(half % 2), out);
    } else {
      typename Kind::Value all[kHalfGroup];
      Kind::half_group(words[half / 2], int(half % 2), all);
      std::copy(all + from, all + to, out);
    }
    out += to - from;
  }
}

// Elements first, …, first + count − 1 of a stream. Groups go two by two: one alone would have the processor wait for
// its results.
template <class Kind>
void elements(typename Kind::Value* out, int64_t count, const Schedule& schedule, int64_t first) {
  constexpr int64_t size = philox::kGroup;
  uint32_t index = uint32_t(first / size);
  if (const int64_t begin = first % size; begin != 0 && count > 0) {
    const int64_t end = std::min(size, begin + count);
    part_of_groups<Kind, 1>(schedule, index++, begin, end, out);
    out += end - begin;
    count -= end - begin;
  }
  const int64_t pairs = count / (2 * size), rest = count % (2 * size);
  whole_groups<Kind, 2>(schedule, index, pairs, out);
  index += uint32_t(2 * pairs);
  out += 2 * pairs * size;
  if (rest > size) part_of_groups<Kind, 2>(schedule, index, 0, rest, out);
  else if (rest == size) whole_groups<Kind, 1>(schedule, index, 1, out);
  else if (rest > 0) part_of_groups<Kind, 1>(schedule, index, 0, rest, out);
}

template <class Kind>
void elements(typename Kind::Value* out, int64_t count, const philox::Stream& stream, int64_t first) {
  elements<Kind>(out, count, Schedule(stream), first);
}
