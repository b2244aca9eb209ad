// Products of single rows with keys as they lie in memory.

// Lane i of the result is the sum of v[i]'s lanes, for SHIFT = kLanes / 2.
template <class T, int SHIFT>
MHICL_INLINE Vec<T> sums_of_lanes(Vec<T>* v) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  MHICL_UNROLL
  for (int i = 0; i < SHIFT; ++i) {
    const Vec<T> a = v[i], b = v[i + SHIFT];
    v[i] = exchange<T, SHIFT, true>(a, b, lanes) + exchange<T, SHIFT, false>(a, b, lanes);
  }
  if constexpr (SHIFT > 1) return sums_of_lanes<T, SHIFT / 2>(v);
  else return v[0];
}

// out[l] = row · keys[l] for as many keys as there are lanes; the last of fewer keys is taken again.
template <class T, bool Whole>
void dot_products(const T* keys, int64_t stride, int64_t count, const T* row, int64_t dim, T* out) {
  constexpr int W = kLanes<T>;
  const Head<T> tail(dim % W);
  const auto key = [&](int i) MHICL_INLINE_LAMBDA { return keys + (Whole || i < count ? i : count - 1) * stride; };
  Vec<T> sum[W];
  MHICL_UNROLL
  for (int i = 0; i < W; ++i) sum[i] = Vec<T>{};
  int64_t e = 0;
  for (; e + W <= dim; e += W) {
    const Vec<T> x = load(row + e);
    MHICL_UNROLL
    for (int i = 0; i < W; ++i) sum[i] = fma<T>(load(key(i) + e), x, sum[i]);
  }
  if (e < dim) {
    const Vec<T> x = load(row + e);
    MHICL_UNROLL
    for (int i = 0; i < W; ++i) sum[i] = fma<T>(load(key(i) + e, tail), x, sum[i]);
  }
  store(out, sums_of_lanes<T, W / 2>(sum));
}

template <class T>
void dot_products(const KeyRows<T>& keys, int64_t count, const T* row, int64_t dim, T* out) {
  constexpr int W = kLanes<T>;
  int64_t l = 0;
  for (; l + W <= count; l += W) dot_products<T, true>(keys.data + l * keys.stride, keys.stride, W, row, dim, out + l);
  if (l < count) dot_products<T, false>(keys.data + l * keys.stride, keys.stride, count - l, row, dim, out + l);
}

// COLS vectors of Σ_l w_l keys[l], in four chains of every fourth key.
template <class T, int COLS, bool Partial>
void weighted_sum_strip(const KeyRows<T>& keys, int64_t count, const T* weights, int64_t at, Head<T> tail, T* out) {
  constexpr int W = kLanes<T>;
  Vec<T> sum[4][COLS];
  MHICL_UNROLL
  for (int i = 0; i < 4 * COLS; ++i) sum[i / COLS][i % COLS] = Vec<T>{};
  const auto add = [&](int chain, int64_t l) MHICL_INLINE_LAMBDA {
    const Vec<T> weight = broadcast<T>(weights[l]);
    const T* key = keys.data + l * keys.stride + at;
    MHICL_UNROLL
    for (int c = 0; c < COLS; ++c) {
      const Vec<T> x = Partial && c == COLS - 1 ? load(key + c * W, tail) : load(key + c * W);
      sum[chain][c] = fma<T>(weight, x, sum[chain][c]);
    }
  };
  int64_t l = 0;
  for (; l + 4 <= count; l += 4) {
    MHICL_UNROLL
    for (int chain = 0; chain < 4; ++chain) add(chain, l + chain);
  }
  for (; l < count; ++l) add(0, l);
  MHICL_UNROLL
  for (int c = 0; c < COLS; ++c) store(out + at + c * W, (sum[0][c] + sum[1][c]) + (sum[2][c] + sum[3][c]));
}

// out (padded dim) = Σ_l w_l keys[l].
template <class T>
void weighted_sum(const KeyRows<T>& keys, int64_t count, const T* weights, int64_t dim, T* out) {
  constexpr int W = kLanes<T>;
  int64_t at = 0;
  const Head<T> tail((dim - 1) % W + 1);
  for (; at + 2 * W < dim; at += 2 * W) weighted_sum_strip<T, 2, false>(keys, count, weights, at, tail, out);
  if (dim - at > W) weighted_sum_strip<T, 2, true>(keys, count, weights, at, tail, out);
  else weighted_sum_strip<T, 1, true>(keys, count, weights, at, tail, out);
}
