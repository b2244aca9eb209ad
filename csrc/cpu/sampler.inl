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

// A stream with the keys of all rounds.
struct Schedule {
  uint64_t counter1, counter2, counter3, key0[philox::kRounds], key1[philox::kRounds];

  explicit Schedule(const philox::Stream& stream)
      : counter1(stream.counter1), counter2(stream.counter2), counter3(stream.counter3) {
    for (uint32_t round = 0; round < philox::kRounds; ++round) {
      key0[round] = stream.key0 + round * philox::kKeyIncrement0;
      key1[round] = stream.key1 + round * philox::kKeyIncrement1;
    }
  }
};

// Philox on one block in each 64-bit lane. Only the low halves matter: the high ones fill with rubbish, which neither
// the multiplications nor the shifts let in.
MHICL_INLINE void philox_lanes(const Schedule& schedule, Wide index, Wide (&word)[philox::kWords]) {
  Wide c0 = index, c1 = schedule.counter1 + Wide{}, c2 = schedule.counter2 + Wide{}, c3 = schedule.counter3 + Wide{};
  const Wide multiplier0 = philox::kMultiplier0 + Wide{}, multiplier1 = philox::kMultiplier1 + Wide{};
#pragma GCC unroll 10
  for (int round = 0; round < philox::kRounds; ++round) {
    const Wide product0 = multiply_low_halves(multiplier0, c0);
    const Wide product1 = multiply_low_halves(multiplier1, c2);
    c0 = exclusive_or(product1 >> 32, c1, schedule.key0[round] + Wide{});
    c1 = product1;
    c2 = exclusive_or(product0 >> 32, c3, schedule.key1[round] + Wide{});
    c3 = product0;
  }
  word[0] = c0;
  word[1] = c1;
  word[2] = c2;
  word[3] = c3;
}

// Even blocks run in one vector and odd ones in another, so that joining their low halves puts blocks in order.
MHICL_INLINE GroupWords group_words(const Schedule& schedule, uint32_t group) {
  static constexpr uint64_t even_numbers[] = {0, 2, 4, 6, 8, 10, 12, 14};
  constexpr int blocks_at_once = 2 * MHICL_VECTOR_BYTES / int(sizeof(uint64_t));
  Wide evens;
  std::memcpy(&evens, even_numbers, sizeof evens);
  GroupWords out;
  for (int first = 0; first < philox::kLanes; first += blocks_at_once) {
    const Wide index = evens + uint64_t(group * philox::kLanes + first);
    Wide even[philox::kWords], odd[philox::kWords];
    philox_lanes(schedule, index, even);
    philox_lanes(schedule, index + 1, odd);
    for (int k = 0; k < philox::kWords; ++k) {
      const Wide joined = (even[k] & 0xFFFFFFFFu) | odd[k] << 32;
      std::memcpy(&out.word[k][first], &joined, sizeof joined);
    }
  }
  return out;
}

#else

using Schedule = philox::Stream;

MHICL_INLINE GroupWords group_words(const Schedule& stream, uint32_t group) {
  GroupWords out;
  for (int j = 0; j < philox::kLanes; ++j) {
    const philox::Block block = philox::block(stream, group * philox::kLanes + j);
    for (int k = 0; k < philox::kWords; ++k) out.word[k][j] = block.word[k];
  }
  return out;
}

#endif

template <class T>
MHICL_INLINE VecWords<T> load_words(const uint32_t* p) {
  VecWords<T> words;
  std::memcpy(&words, p, sizeof words);
  return words;
}

// What a stream's elements can be asked for as. Half a group is the two runs of 16 that words 0 and 1, or words 2 and 3,
// make: one pair of Box-Muller.
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

// Elements begin, …, end − 1 of a group; nothing is computed for a half that has none of them.
template <class Kind>
void part_of_group(const Schedule& schedule, uint32_t index, int64_t begin, int64_t end,
                   typename Kind::Value* out) {
  const GroupWords words = group_words(schedule, index);
  for (int half = 0; half < 2; ++half) {
    const int64_t offset = half * kHalfGroup;
    const int64_t from = std::max<int64_t>(begin - offset, 0), to = std::min<int64_t>(end - offset, kHalfGroup);
    if (from >= to) continue;
    typename Kind::Value all[kHalfGroup];
    Kind::half_group(words, half, all);
    out = std::copy(all + from, all + to, out);
  }
}

// Elements first, …, first + count − 1 of a stream.
template <class Kind>
void elements(typename Kind::Value* out, int64_t count, const philox::Stream& stream, int64_t first) {
  constexpr int64_t size = philox::kGroup;
  const Schedule schedule(stream);
  uint32_t index = uint32_t(first / size);
  if (const int64_t begin = first % size; begin != 0 && count > 0) {
    const int64_t end = std::min(size, begin + count);
    part_of_group<Kind>(schedule, index++, begin, end, out);
    out += end - begin;
    count -= end - begin;
  }
  for (; count >= size; count -= size, out += size) {
    const GroupWords words = group_words(schedule, index++);
    Kind::half_group(words, 0, out);
    Kind::half_group(words, 1, out + kHalfGroup);
  }
  if (count > 0) part_of_group<Kind>(schedule, index, 0, count, out);
}
