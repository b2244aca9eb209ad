// Box-Muller from 32-bit words, written once for scalars and vectors. The including namespace has for T = float and
// double: Vec<T>, a vector of T or T itself; VecBits<T>, integers of T's width; VecWords<T>, as many 32-bit words; and
//   broadcast<T>(x)  fma<T>(a, b, c)  select<T>(mask, yes, no)  square_root<T>(x)
//   to_bits<T>(x)  from_bits<T>(bits)
//   to_signed<T>(words)       the words, read as signed integers, in T
//   top_bit<T>(words)         a mask for select: the words' bit 31
//   flip_sign<T>(x, words)    −x where the words' bit 31 is set
// The polynomials are minimax fits (Remez), relative to the function's value.

// Horner's rule, the highest power's coefficient first.
template <class T, int N>
MHICL_INLINE Vec<T> polynomial(Vec<T> x, const T (&coefficients)[N]) {
  Vec<T> sum = broadcast<T>(coefficients[0]);
  for (int i = 1; i < N; ++i) sum = fma<T>(sum, x, broadcast<T>(coefficients[i]));
  return sum;
}

// −2 ln(1 + f) for √½ − 1 ≤ f ≤ √2 − 1, to T's relative accuracy down to f = 0.
template <class T>
MHICL_INLINE Vec<T> minus_two_log1p(Vec<T> f) {
  if constexpr (std::is_same_v<T, float>) {
    constexpr float c[] = {-0.174445182f, 0.28733474f,   -0.299045086f, 0.331248164f, -0.399136722f,
                           0.500041485f,  -0.666683733f, 0.999999762f,  -2.0f};
    return f * polynomial<float>(f, c);
  } else {
    // ln(1 + f) = 2 artanh s at s = f / (2 + f)
    constexpr double c[] = {-0.29621049152796791, -0.30624888325951943, -0.36367270168439186, -0.44444393976591762,
                            -0.57142857522696144, -0.79999999998597726, -1.333333333333353,   -4.0};
    const Vec<double> s = f / (f + broadcast<double>(2.0));
    return s * polynomial<double>(s * s, c);
  }
}

// −2 ln u of u = (a + ½) / 2³².
template <class T>
MHICL_INLINE Vec<T> minus_two_log(VecWords<T> a) {
  using Bits = std::conditional_t<std::is_same_v<T, float>, int32_t, int64_t>;
  constexpr int mantissa = std::is_same_v<T, float> ? 23 : 52;
  constexpr Bits exponent_of_one = std::is_same_v<T, float> ? 127 : 1023;
  constexpr Bits root_half = std::is_same_v<T, float> ? Bits(0x3F3504F3) : Bits(0x3FE6A09E667F3BCD);

  // As a signed number a holds u below ½ and u − 1 from ½ on: next to 0 and next to 1 nothing is rounded away.
  const Vec<T> v = fma<T>(to_signed<T>(a), broadcast<T>(T(0x1p-32)), broadcast<T>(T(0x1p-33)));
  const Vec<T> u = select<T>(top_bit<T>(a), v + broadcast<T>(T(1)), v);

  // u = 2ᵉ (1 + f) with √½ ≤ 1 + f < √2. Where e is 0, u is above √½ and f is v.
  const VecBits<T> above = to_bits<T>(u) - root_half;
  const VecBits<T> exponent = above >> mantissa;
  const Vec<T> one_plus_f = from_bits<T>((above & ((Bits(1) << mantissa) - 1)) + root_half);
  const Vec<T> f = select<T>(exponent == 0, v, one_plus_f - broadcast<T>(T(1)));

  // An integer added to the bits of 1.5 · 2^mantissa is added to that number.
  constexpr T magic = T(Bits(3) << (mantissa - 1));
  constexpr Bits magic_bits = (exponent_of_one + mantissa) << mantissa | Bits(1) << (mantissa - 1);
  const Vec<T> e = from_bits<T>(exponent + magic_bits) - broadcast<T>(magic);
  return fma<T>(e, broadcast<T>(T(-1.3862943611198906)), minus_two_log1p<T>(f));
}

// cos and sin of t π/4 for −1 ≤ t < 1.
template <class T>
MHICL_INLINE void cos_sin_octant(Vec<T> t, Vec<T>& cosine, Vec<T>& sine) {
  const Vec<T> square = t * t;
  if constexpr (std::is_same_v<T, float>) {
    constexpr float c[] = {3.52876123e-6f, -3.25936504e-4f, 1.58543233e-2f, -3.08425128e-1f, 1.0f};
    constexpr float s[] = {-3.5950452e-5f, 2.49000103e-3f, -8.07454363e-2f, 7.85398185e-1f};
    cosine = polynomial<float>(square, c);
    sine = t * polynomial<float>(square, s);
  } else {
    constexpr double c[] = {-3.8577619856113101e-13, 1.1500497021808686e-10,  -2.4611363826325517e-8,
                            3.5908604458857802e-6,   -3.2599188692668751e-4, 1.5854344243815412e-2,
                            -0.30842513753404244,    1.0};
    constexpr double s[] = {6.8771013198552373e-12, -1.7571492955167932e-9, 3.1336162166481938e-7,
                            -3.6576204158457104e-5, 2.4903945701887364e-3,  -8.0745512188280535e-2,
                            0.78539816339744828};
    cosine = polynomial<double>(square, c);
    sine = t * polynomial<double>(square, s);
  }
}

// √(−2 ln u) (cos θ, sin θ) at u = (a + ½) / 2³², θ = 2π b / 2³².
template <class T>
MHICL_INLINE void box_muller(VecWords<T> a, VecWords<T> b, Vec<T>& first, Vec<T>& second) {
  const Vec<T> radius = square_root<T>(minus_two_log<T>(a));

  // θ = (k + t/2) π/2: the nearest quarter turn k, and what is left from the low 30 bits as a signed number, exactly.
  const VecWords<T> turned = b + (uint32_t(1) << 29);  // k in the two top bits
  const Vec<T> t = to_signed<T>(b << 2) * broadcast<T>(T(0x1p-31));
  Vec<T> cosine, sine;
  cos_sin_octant<T>(t, cosine, sine);
  const auto odd = top_bit<T>(turned << 1);
  first = radius * flip_sign<T>(select<T>(odd, sine, cosine), turned ^ (turned << 1));  // cos θ < 0 at k = 1, 2
  second = radius * flip_sign<T>(select<T>(odd, cosine, sine), turned);                 // sin θ < 0 at k = 2, 3
}
