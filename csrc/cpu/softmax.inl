// Softmax over the context, and its derivative, on tables of `positions` rows with one column a head. Rows are
// `width` long, a divisor of the vector's lanes, and adjacent: a vector holds lanes / width whole rows, and lane i
// always belongs to head i mod width. Tables are padded to whole vectors.

// e^x for x ≤ 0, and 0 below the smallest normal number: x = n ln 2 + r, |r| ≤ ½ ln 2, e^x = 2ⁿ e^r. NaN stays NaN.
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
  return select<T>(x < broadcast<T>(lowest), Vec<T>{}, scale_by_power_of_two<T, mantissa>(series, shifted));
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

// Turns logits into probabilities, in place. n_vectors covers the table; padding holds −∞.
template <class T>
void softmax(T* table, int64_t n_vectors, int64_t width) {
  constexpr int W = kLanes<T>;
  Vec<T> top = broadcast<T>(-std::numeric_limits<T>::infinity());
  for (int64_t i = 0; i < n_vectors; ++i) top = max<T>(top, load(table + i * W));
  top = largest_by_head<T>(top, width);
  Vec<T> sum{};
  for (int64_t i = 0; i < n_vectors; ++i) {
    const Vec<T> e = exp_nonpositive<T>(load(table + i * W) - top);
    sum += e;
    store(table + i * W, e);
  }
  sum = sum_by_head<T>(sum, width);
  const Vec<T> inverse = broadcast<T>(T(1)) / sum;
  for (int64_t i = 0; i < n_vectors; ++i) store(table + i * W, load(table + i * W) * inverse);
}

// p = softmax(s): ∂s_l = p_l (∂p_l − Σ_m p_m ∂p_m). Replaces ∂p by ∂s.
template <class T>
void softmax_backward(const T* probabilities, T* gradient, int64_t n_vectors, int64_t width) {
  constexpr int W = kLanes<T>;
  Vec<T> mean{};
  for (int64_t i = 0; i < n_vectors; ++i) mean = fma<T>(load(probabilities + i * W), load(gradient + i * W), mean);
  mean = sum_by_head<T>(mean, width);
  for (int64_t i = 0; i < n_vectors; ++i) {
    store(gradient + i * W, load(probabilities + i * W) * (load(gradient + i * W) - mean));
  }
}
