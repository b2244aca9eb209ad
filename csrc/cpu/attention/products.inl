// The matrix products of a block of rows with a block of keys. Tables are (keys × rows), and nobody computes what lies
// beyond a segment. The first segment's product asks for what lies ahead.

// table = keys (keys × dim) · columns (dim × rows).
template <class T>
void keys_by_rows(const Sight<T>& sight, const KeyRows<T>& keys, int64_t dim, const T* columns, T* table,
                  const Ahead& ahead, const Ahead& ahead_too) {
  constexpr int W = kLanes<T>;
  const int64_t width = sight.vectors * W;
  for (int s = 0; s < sight.segments; ++s) {
    const Segment& at = sight.segment[s];
    gemm<T>({.rows = at.end - at.begin, .cols = width - at.vector * W, .depth = dim,
             .a = keys.data + at.begin * keys.stride, .a_stride = keys.stride, .unit_rows = false,
             .b = columns + at.vector * W, .b_stride = width, .c = table + at.begin * width + at.vector * W,
             .c_stride = width, .accumulate = false, .ahead = {s == 0 ? ahead : Ahead{}, s == 0 ? ahead_too : Ahead{}}});
  }
}

// sums (dim × rows) += keysᵀ · table; without the first sum where there is none yet.
template <class T>
void sums_over_keys(const Sight<T>& sight, const KeyRows<T>& keys, int64_t dim, const T* table, bool accumulate,
                    T* sums, const Ahead& ahead) {
  constexpr int W = kLanes<T>;
  const int64_t width = sight.vectors * W;
  for (int s = 0; s < sight.segments; ++s) {
    const Segment& at = sight.segment[s];
    gemm<T>({.rows = dim, .cols = width - at.vector * W, .depth = at.end - at.begin,
             .a = keys.data + at.begin * keys.stride, .a_stride = keys.stride, .unit_rows = true,
             .b = table + at.begin * width + at.vector * W, .b_stride = width, .c = sums + at.vector * W,
             .c_stride = width, .accumulate = accumulate || s > 0, .ahead = {s == 0 ? ahead : Ahead{}}});
  }
}

// sums (keys × dim) (+)= table · rows (rows × dim).
template <class T>
void sums_over_rows(const Sight<T>& sight, const RowBlock& block, const T* table, const T* rows, int64_t dim,
                    bool accumulate, T* sums, int64_t stride) {
  constexpr int W = kLanes<T>;
  const int64_t row_stride = padded_to_vectors<T>(dim);
  for (int s = 0; s < sight.segments; ++s) {
    const Segment& at = sight.segment[s];
    gemm<T>({.rows = at.end - at.begin, .cols = dim, .depth = block.count - at.vector * W,
             .a = table + at.begin * block.width + at.vector * W, .a_stride = block.width, .unit_rows = false,
             .b = rows + at.vector * W * row_stride, .b_stride = row_stride, .c = sums + at.begin * stride,
             .c_stride = stride, .accumulate = accumulate});
  }
}
