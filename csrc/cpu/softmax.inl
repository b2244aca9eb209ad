// Softmax over the context, and its derivative, on tables of `positions` rows with one column a head. Rows are
// `width` long, a divisor of the vector's lanes, and adjacent: a vector holds lanes / width whole rows, and lane i
// always belongs to head i mod width. Tables are padded to whole vectors.

// e^x for x ≤ 0, and 0 where it would come close to the smallest normal number: x = n ln 2 + r, |r| ≤ ½ ln 2, e^x = 2ⁿ e^r. NaN stays NaN.
template <class T>
MHICL_INLINE Vec<T> exp_nonpositive(Vec<T> x);

// 2ⁿ p by adding n to the exponent's bits. `shifted` is n + 1.5·2^mantissa, whose low bits are n.
template <class T, int MANTISSA>
MHICL_INLINE Vec<T> scale_by_power_of_two(Vec<T> p, Vec<T> shifted) {
  return Vec<T>(VecBits<T>(p) + (VecBits<T>(shifted) << MANTISSA));
}

template <class T, int N>
MHICL_INLINE Vec<T> exp_reduced(Vec<T> x, T lowest, T rounder, T ln2_high, T ln2_low, const T (&coefficients)[N]) {
  constexpr int mantissa = std::is_same_v<T, float> ? 23 : 52;
  const Vec<T> clamped = max<T>(broadcast<T>(lowest), x);
  const Vec<T> shifted = fma<T>(clamped, broadcast<T>(T(1.4426950408889634)), broadcast<T>(rounder));
  const Vec<T> n = shifted - broadcast<T>(rounder);
  const Vec<T> r = fma<T>(-n, broadcast<T>(ln2_low), fma<T>(-n, broadcast<T>(ln2_high), clamped));
  Vec<T> series = broadcast<T>(coefficients[0]);
  for (int i = 1; i < N; ++i) series = fma<T>(series, r, broadcast<T>(coefficients[i]));
  const Vec<T> power = scale_by_power_of_two<T, mantissa>(series, shifted);
  // A NaN's bits plus an exponent can be an ordinary number, so NaN goes round.
  const Vec<T> otherwise = select<T>(x < broadcast<T>(lowest), Vec<T>{}, x);
  return select<T>(x >= broadcast<T>(lowest), power, otherwise);
}

template <>
MHICL_INLINE Vec<float> exp_nonpositive<float>(Vec<float> x) {
  // The Taylor series to r⁷: the remainder is below 6e-9.
  static constexpr float taylor[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  return exp_reduced<float>(x, -86.0f, 12582912.0f, 0.693359375f, -2.12194440e-4f, taylor);
}

template <>
MHICL_INLINE Vec<double> exp_nonpositive<double>(Vec<double> x) {
  // The Taylor series to r¹³: the remainder is below 5e-18.
  static constexpr double taylor[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                      1.0 / 40320,      1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,
                                      1.0 / 6,          0.5,             1.0,            1.0};
  return exp_reduced<double>(x, -707.0, 6755399441055744.0, 6.93147180369123816490e-1, 1.90821492927058770002e-10,
                             taylor);
}

// Combines the lanes that belong to one head, so that each of them holds the head's total.
template <class T>
MHICL_INLINE Vec<T> largest_by_head(Vec<T> v, int64_t width) {
  for (int shift = kLanes<T> / 2; shift >= width; shift /= 2) v = max<T>(v, rotate<T>(v, Rotation<T>(shift)));
  return v;
}
template <class T>
MHICL_INLINE Vec<T> sum_by_head(Vec<T> v, int64_t width) {
  for (int shift = kLanes<T> / 2; shift >= width; shift /= 2) v += rotate<T>(v, Rotation<T>(shift));
  return v;
}

// Reductions run in four independent chains, since each step of a chain waits for the one before. The order is fixed.
// step(chain, i) takes vector i in; merge joins two chains.
template <class T, class Step, class Merge>
MHICL_INLINE Vec<T> reduce(int64_t n, Vec<T> start, const Step& step, const Merge& merge) {
  Vec<T> chain[4] = {start, start, start, start};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    MHICL_UNROLL
    for (int c = 0; c < 4; ++c) chain[c] = step(chain[c], i + c);
  }
  for (; i < n; ++i) chain[0] = step(chain[0], i);
  return merge(merge(chain[0], chain[1]), merge(chain[2], chain[3]));
}

template <class T>
struct Add {
  MHICL_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const { return a + b; }
};
template <class T>
struct Larger {
  MHICL_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const { return max<T>(a, b); }
};

// Turns logits into probabilities, in place. n_vectors covers the table; padding holds −∞.
template <class T>
void softmax(T* table, int64_t n_vectors, int64_t width) {
  constexpr int W = kLanes<T>;
  const Vec<T> lowest = broadcast<T>(-std::numeric_limits<T>::infinity());
  const auto larger = [&](Vec<T> top, int64_t i) MHICL_INLINE_LAMBDA { return max<T>(top, load(table + i * W)); };
  const Vec<T> top = largest_by_head<T>(reduce<T>(n_vectors, lowest, larger, Larger<T>{}), width);
  const auto exponential = [&](Vec<T> sum, int64_t i) MHICL_INLINE_LAMBDA {
    const Vec<T> e = exp_nonpositive<T>(load(table + i * W) - top);
    store(table + i * W, e);
    return sum + e;
  };
  const Vec<T> sum = sum_by_head<T>(reduce<T>(n_vectors, Vec<T>{}, exponential, Add<T>{}), width);
  const Vec<T> inverse = broadcast<T>(T(1)) / sum;
  for (int64_t i = 0; i < n_vectors; ++i) store(table + i * W, load(table + i * W) * inverse);
}

// p = softmax(s): ∂s_l = p_l (∂p_l − Σ_m p_m ∂p_m). Replaces ∂p by ∂s.
template <class T>
void softmax_backward(const T* probabilities, T* gradient, int64_t n_vectors, int64_t width) {
  constexpr int W = kLanes<T>;
  const auto product = [&](Vec<T> sum, int64_t i) MHICL_INLINE_LAMBDA {
    return fma<T>(load(probabilities + i * W), load(gradient + i * W), sum);
  };
  const Vec<T> mean = sum_by_head<T>(reduce<T>(n_vectors, Vec<T>{}, product, Add<T>{}), width);
  for (int64_t i = 0; i < n_vectors; ++i) {
    store(gradient + i * W, load(probabilities + i * W) * (load(gradient + i * W) - mean));
  }
}
