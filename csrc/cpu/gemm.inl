// One small matrix product serves every contraction of the operators: C (rows × cols) = A (rows × depth) · B (depth ×
// cols). B's rows are contiguous and fill vectors; A's entries are broadcast. A tile of C stays in registers over the
// whole depth.
//
// A comes in two layouts. UnitRows: entries of one column are adjacent, A[r, k] = a[k·stride + r]. Otherwise entries of
// one row are, A[r, k] = a[r·stride + k].

#if defined(MHICL_ISA_AVX512)
inline constexpr int kTileRows = 8, kTileCols = 3;  // 24 of 32 registers accumulate
#elif defined(MHICL_ISA_AVX2)
inline constexpr int kTileRows = 4, kTileCols = 3;  // 12 of 16
#else
inline constexpr int kTileRows = 4, kTileCols = 2;
#endif

// Row pointers of a row-contiguous A in groups of three: base, base + stride and base + 2·stride are one addressing mode
// each, so that a dozen rows need four pointers, not twelve.
template <class T, int ROWS>
struct RowPointers {
  static constexpr int kGroups = (ROWS + 2) / 3;
  const T* base[kGroups];
  int64_t stride, twice;

  MHICL_INLINE RowPointers(const T* a, int64_t stride) : stride(stride), twice(2 * stride) {
    MHICL_UNROLL
    for (int g = 0; g < kGroups; ++g) base[g] = a + 3 * g * stride;
  }
  MHICL_INLINE const T* at(int r) const {
    const T* p = base[r / 3];
    return r % 3 == 0 ? p : r % 3 == 1 ? p + stride : p + twice;
  }
  MHICL_INLINE T operator[](int r) const { return *at(r); }
  MHICL_INLINE void advance(int64_t elements) {
    MHICL_UNROLL
    for (int g = 0; g < kGroups; ++g) base[g] += elements;
  }
};

// acc[r][c] = Σ_k A[r, k] B[k, c], where the last vector of a row of B has only `tail` lanes if Partial. Each step also
// asks for AHEAD cache lines at `ahead`, a line further each time.
template <class T, int ROWS, int COLS, bool UnitRows, bool Partial, int AHEAD = 0>
MHICL_INLINE void multiply_tile(Vec<T> (&acc)[ROWS][COLS], int64_t depth, const T* a, int64_t a_stride, const T* b,
                                int64_t b_stride, Head<T> tail, const char* ahead = nullptr) {
  RowPointers<T, ROWS> rows(a, a_stride);
  MHICL_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    MHICL_UNROLL
    for (int c = 0; c < COLS; ++c) acc[r][c] = Vec<T>{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row_of_b[COLS];
    MHICL_UNROLL
    for (int c = 0; c < COLS; ++c) {
      row_of_b[c] = Partial && c == COLS - 1 ? load(b + c * kLanes<T>, tail) : load(b + c * kLanes<T>);
    }
    MHICL_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      const Vec<T> entry = broadcast<T>(UnitRows ? a[r] : rows[r]);
      MHICL_UNROLL
      for (int c = 0; c < COLS; ++c) acc[r][c] = fma<T>(entry, row_of_b[c], acc[r][c]);
    }
    MHICL_UNROLL
    for (int i = 0; i < AHEAD; ++i) __builtin_prefetch(ahead + (k * AHEAD + i) * 64, 0, 2);
    b += b_stride;
    if (UnitRows) a += a_stride;
    else rows.advance(1);
  }
}

template <class T, int ROWS, int COLS, bool UnitRows, bool Partial>
void gemm_tile(const GemmParams<T>& p, int64_t row, int64_t col, Head<T> tail) {
  Vec<T> acc[ROWS][COLS];
  multiply_tile<T, ROWS, COLS, UnitRows, Partial>(acc, p.depth, p.a + row * (UnitRows ? 1 : p.a_stride), p.a_stride,
                                                    p.b + col, p.b_stride, tail);
  T* const out = p.c + row * p.c_stride + col;
  const int64_t stride = p.c_stride;  // what a store writes might be p itself, for all that the compiler knows
  if (p.accumulate) {
    MHICL_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      MHICL_UNROLL
      for (int c = 0; c < COLS; ++c) {
        const T* at = out + r * stride + c * kLanes<T>;
        acc[r][c] += Partial && c == COLS - 1 ? load(at, tail) : load(at);
      }
    }
  }
  MHICL_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    MHICL_UNROLL
    for (int c = 0; c < COLS; ++c) {
      T* at = out + r * stride + c * kLanes<T>;
      if (Partial && c == COLS - 1) store(at, acc[r][c], tail);
      else store(at, acc[r][c]);
    }
  }
}

// Asks for rows [first, last) of what will be needed, from their beginning to their end.
MHICL_INLINE void fetch(const Ahead& ahead, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; ++r) {
    const char* row = ahead.data + r * ahead.stride;
    for (int64_t at = 0; at < ahead.row_bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
    __builtin_prefetch(row + ahead.row_bytes - 1, 0, 2);
  }
}

// All rows of one strip of COLS vectors, in tiles of ROWS and then of its halves.
template <class T, int ROWS, int COLS, bool UnitRows, bool Partial>
void gemm_strip(const GemmParams<T>& p, int64_t row, int64_t col, Head<T> tail) {
  for (; p.rows - row >= ROWS; row += ROWS) {
    if (col == 0) {
      for (const Ahead& ahead : p.ahead) fetch(ahead, ahead.rows * row / p.rows, ahead.rows * (row + ROWS) / p.rows);
    }
    gemm_tile<T, ROWS, COLS, UnitRows, Partial>(p, row, col, tail);
  }
  if constexpr (ROWS > 1) gemm_strip<T, ROWS / 2, COLS, UnitRows, Partial>(p, row, col, tail);
}

template <class T, int COLS, bool UnitRows>
void gemm_strip(const GemmParams<T>& p, int64_t col) {
  const int64_t left = p.cols - col;
  if (left < COLS * kLanes<T>) {
    gemm_strip<T, kTileRows, COLS, UnitRows, true>(p, 0, col, Head<T>(left - (COLS - 1) * kLanes<T>));
  } else {
    gemm_strip<T, kTileRows, COLS, UnitRows, false>(p, 0, col, Head<T>(0));
  }
}

template <class T, bool UnitRows>
void gemm_columns(const GemmParams<T>& p) {
  int64_t vectors = (p.cols + kLanes<T> - 1) / kLanes<T>;
  for (int64_t col = 0; vectors > 0;) {
    // Even strips: four vectors go as 2 + 2, since 3 + 1 would leave a strip that loads as much as it computes.
    const int64_t strips = (vectors + kTileCols - 1) / kTileCols;
    const int64_t width = (vectors + strips - 1) / strips;
    if (width == 3) gemm_strip<T, 3, UnitRows>(p, col);
    else if (width == 2) gemm_strip<T, 2, UnitRows>(p, col);
    else gemm_strip<T, 1, UnitRows>(p, col);
    vectors -= width;
    col += width * kLanes<T>;
  }
}

template <class T>
void gemm(const GemmParams<T>& p) {
  if (p.unit_rows) gemm_columns<T, true>(p);
  else gemm_columns<T, false>(p);
}
