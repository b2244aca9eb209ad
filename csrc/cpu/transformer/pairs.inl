// Sums over rows of a head whose numbers fill half a vector at most. Two rows share a vector there, number by number, and
// the pair of their weights is broadcast as one 64-bit number: half as many multiply-adds, none of which is idle.

// Lane i is number i/2 of a or, where i is odd, of b.
template <int... I>
MHICL_INLINE Vec<float> interleave(Vec<float> a, Vec<float> b, std::integer_sequence<int, I...>) {
  constexpr int W = kLanes<float>;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (I % 2 ? W + I / 2 : I / 2)...);
#else
  return __builtin_shuffle(a, b, VecBits<float>{(I % 2 ? W + I / 2 : I / 2)...});
#endif
}

// Lane i of the first half is the sum of lanes 2i and 2i + 1.
template <int... I>
MHICL_INLINE Vec<float> sum_neighbours(Vec<float> v, std::integer_sequence<int, I...>) {
  constexpr int W = kLanes<float>;
#if defined(__clang__)
  return __builtin_shufflevector(v, v, (2 * I % W)...) + __builtin_shufflevector(v, v, ((2 * I + 1) % W)...);
#else
  return __builtin_shuffle(v, VecBits<float>{(2 * I % W)...}) + __builtin_shuffle(v, VecBits<float>{((2 * I + 1) % W)...});
#endif
}

inline constexpr auto kFloatLanes = std::make_integer_sequence<int, kLanes<float>>{};

MHICL_INLINE Vec<float> broadcast_pair(const float* two) {
  int64_t bits;
  std::memcpy(&bits, two, sizeof bits);
  return Vec<float>(VecBits<double>{} + bits);
}

struct PairSums {
  int64_t keys, dim, rows;
  const float* table;  // (keys, table_stride)
  int64_t table_stride;
  const float* pairs;  // (⌈rows / 2⌉, lanes): an odd last row has a zero beside each number
  float* out;          // (keys, out_stride)
  int64_t out_stride;
};

// out = table · rows from row `key` of the table on, in tiles of KEYS and then of its halves.
template <int KEYS>
void sum_pairs(const PairSums& p, int64_t key) {
  constexpr int W = kLanes<float>;
  for (; p.keys - key >= KEYS; key += KEYS) {
    Vec<float> sum[KEYS];
    MHICL_UNROLL
    for (int l = 0; l < KEYS; ++l) sum[l] = Vec<float>{};
    RowPointers<float, KEYS> weights(p.table + key * p.table_stride, p.table_stride);
    for (int64_t pair = 0; pair < p.rows / 2; ++pair) {
      const Vec<float> two = load(p.pairs + pair * W);
      MHICL_UNROLL
      for (int l = 0; l < KEYS; ++l) sum[l] = fma<float>(broadcast_pair(weights.at(l)), two, sum[l]);
      weights.advance(2);
    }
    if (p.rows % 2) {
      const Vec<float> one = load(p.pairs + p.rows / 2 * W);
      MHICL_UNROLL
      for (int l = 0; l < KEYS; ++l) sum[l] = fma<float>(broadcast<float>(weights[l]), one, sum[l]);
    }
    const Head<float> head(p.dim);
    float* const out = p.out + key * p.out_stride;
    const int64_t stride = p.out_stride;  // p might be what a store writes, for all that the compiler knows
    MHICL_UNROLL
    for (int l = 0; l < KEYS; ++l) store(out + l * stride, sum_neighbours(sum[l], kFloatLanes), head);
  }
  if constexpr (KEYS > 1) sum_pairs<KEYS / 2>(p, key);
}

// of_rows (rows × dim) as pairs.
void pair_rows(const float* of_rows, int64_t stride, int64_t rows, int64_t dim, float* pairs) {
  const Head<float> head(dim);
  for (int64_t r = 0; r < rows; r += 2) {
    const Vec<float> even = load(of_rows + r * stride, head);
    const Vec<float> odd = r + 1 < rows ? load(of_rows + (r + 1) * stride, head) : Vec<float>{};
    store(pairs + r / 2 * kLanes<float>, interleave(even, odd, kFloatLanes));
  }
}
