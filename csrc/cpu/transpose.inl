// Transposes between rows of a tensor and rows of lanes.

// Half of one exchange: lanes whose index has the bit SHIFT clear (First) or set stay; the others come from the partner.
template <class T, int SHIFT, bool First, int... I>
MHICL_INLINE Vec<T> exchange(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  if constexpr (First) return __builtin_shufflevector(a, b, (I & SHIFT ? kLanes<T> + I - SHIFT : I)...);
  else return __builtin_shufflevector(a, b, (I & SHIFT ? kLanes<T> + I : I + SHIFT)...);
#else
  if constexpr (First) return __builtin_shuffle(a, b, VecBits<T>{(I & SHIFT ? kLanes<T> + I - SHIFT : I)...});
  else return __builtin_shuffle(a, b, VecBits<T>{(I & SHIFT ? kLanes<T> + I : I + SHIFT)...});
#endif
}

// Exchanges the off-diagonal quarters of every square of 2·SHIFT, then those of the squares within.
template <class T, int SHIFT>
MHICL_INLINE void transpose_square(Vec<T> (&v)[kLanes<T>]) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  MHICL_UNROLL
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i & SHIFT) continue;
    const Vec<T> a = v[i], b = v[i + SHIFT];
    v[i] = exchange<T, SHIFT, true>(a, b, lanes);
    v[i + SHIFT] = exchange<T, SHIFT, false>(a, b, lanes);
  }
  if constexpr (SHIFT > 1) transpose_square<T, SHIFT / 2>(v);
}

// out (columns × rows) = in (rows × columns)ᵀ. `in` is readable up to whole vectors both ways, and `rows` is a multiple of
// the lanes.
template <class T>
void transpose(const T* in, int64_t in_stride, int64_t rows, int64_t columns, T* out, int64_t out_stride) {
  constexpr int W = kLanes<T>;
  for (int64_t r = 0; r < rows; r += W) {
    for (int64_t c = 0; c < columns; c += W) {
      Vec<T> v[W];
      MHICL_UNROLL
      for (int i = 0; i < W; ++i) v[i] = load(in + (r + i) * in_stride + c);
      transpose_square<T, W / 2>(v);
      T* to = out + c * out_stride + r;
      if (c + W <= columns) {
        MHICL_UNROLL
        for (int i = 0; i < W; ++i) store(to + i * out_stride, v[i]);
      } else {
        MHICL_UNROLL
        for (int i = 0; i < W; ++i) {
          if (c + i < columns) store(to + i * out_stride, v[i]);
        }
      }
    }
  }
}
