// Linear algebra on one prompt's tokens, which lie in tiles of 16: a block holds, tile after tile, `width` rows of 16
// numbers, one for each token. A row is a covariate, a noise, a head's logits or probabilities. So tokens are the lanes
// of vectors, as the random streams yield them, and every shape fills its vectors but for the last tile.

inline constexpr int64_t kTile = philox::kLanes;

// Vectors in a row of a tile.
template <class T>
inline constexpr int kRowVectors = int(kTile) / kLanes<T>;

#if defined(MHICL_ISA_AVX512)
inline constexpr int kAccumulators = 24;  // of 32 registers
#else
inline constexpr int kAccumulators = 12;  // of 16
#endif

MHICL_INLINE int64_t tiles_of(int64_t tokens) { return (tokens + kTile - 1) / kTile; }

constexpr int at_least_one(int n) { return n < 1 ? 1 : n; }
constexpr int at_most(int n, int most) { return n < most ? n : most; }

// How many rows of the result, and then tiles, are worked on together.
template <class T>
inline constexpr int kCombinedRows = at_most(8, at_least_one(kAccumulators / kRowVectors<T>));
template <class T>
constexpr int combined_tiles(int rows) {
  return at_most(8, at_least_one(kAccumulators / (rows * kRowVectors<T>)));
}

template <class T>
struct CombineParams {
  const T* panel;  // (rows, depth): row r begins at panel + r·panel_stride
  int64_t panel_stride, rows, depth;
  const T* in;  // a block's first row to take part
  int64_t in_width;
  T* out;  // a block's first row to be written
  int64_t out_width;
  int64_t tiles;
};

// out_r = Σ_k panel[r, k] in_k for ROWS rows and TILES tiles.
template <class T, int ROWS, int TILES>
void combine_block(const CombineParams<T>& p, int64_t row, int64_t tile) {
  constexpr int vectors = kRowVectors<T>;
  RowPointers<T, ROWS> weights(p.panel + row * p.panel_stride, p.panel_stride);
  const int64_t in_stride = p.in_width * kTile, out_stride = p.out_width * kTile;
  RowPointers<T, TILES> in(p.in + tile * in_stride, in_stride);
  Vec<T> acc[ROWS][TILES][vectors];
  MHICL_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    MHICL_UNROLL
    for (int c = 0; c < TILES; ++c) {
      MHICL_UNROLL
      for (int v = 0; v < vectors; ++v) acc[r][c][v] = Vec<T>{};
    }
  }
  for (int64_t k = 0; k < p.depth; ++k) {
    Vec<T> x[TILES][vectors];
    MHICL_UNROLL
    for (int c = 0; c < TILES; ++c) {
      MHICL_UNROLL
      for (int v = 0; v < vectors; ++v) x[c][v] = load(in.at(c) + v * kLanes<T>);
    }
    MHICL_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      const Vec<T> weight = broadcast<T>(weights[r]);
      MHICL_UNROLL
      for (int c = 0; c < TILES; ++c) {
        MHICL_UNROLL
        for (int v = 0; v < vectors; ++v) acc[r][c][v] = fma<T>(weight, x[c][v], acc[r][c][v]);
      }
    }
    weights.advance(1);
    in.advance(kTile);
  }
  MHICL_UNROLL
  for (int c = 0; c < TILES; ++c) {
    T* out = p.out + (tile + c) * out_stride + row * kTile;
    MHICL_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      MHICL_UNROLL
      for (int v = 0; v < vectors; ++v) store(out + r * kTile + v * kLanes<T>, acc[r][c][v]);
    }
  }
}

template <class T, int ROWS, int TILES>
MHICL_INLINE void combine_tiles(const CombineParams<T>& p, int64_t row, int64_t tile, int64_t count) {
  if (count == TILES) combine_block<T, ROWS, TILES>(p, row, tile);
  else if constexpr (TILES > 1) combine_tiles<T, ROWS, TILES - 1>(p, row, tile, count);
}

template <class T, int ROWS>
MHICL_INLINE void combine_rows(const CombineParams<T>& p, int64_t row, int64_t count) {
  if (count == ROWS) {
    constexpr int64_t most = combined_tiles<T>(ROWS);
    // Even shares: 7 tiles by at most 3 go as 3 + 2 + 2.
    int64_t shares = (p.tiles + most - 1) / most;
    for (int64_t tile = 0; tile < p.tiles; --shares) {
      const int64_t share = (p.tiles - tile + shares - 1) / shares;
      combine_tiles<T, ROWS, int(most)>(p, row, tile, share);
      tile += share;
    }
  } else if constexpr (ROWS > 1) {
    combine_rows<T, ROWS - 1>(p, row, count);
  }
}

// out_r = Σ_k panel[r, k] in_k, token by token.
template <class T>
void combine(const CombineParams<T>& p) {
  constexpr int64_t most = kCombinedRows<T>;
  int64_t shares = (p.rows + most - 1) / most;
  for (int64_t row = 0; row < p.rows; --shares) {
    const int64_t share = (p.rows - row + shares - 1) / shares;
    combine_rows<T, int(most)>(p, row, share);
    row += share;
  }
}

template <class T, int... I>
MHICL_INLINE Vec<T> add_neighbours(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, 2 * I...) + __builtin_shufflevector(a, b, 2 * I + 1 ...);
}

// Lane i of the result is the sum of vector i's lanes.
template <class T>
MHICL_INLINE Vec<T> lane_sums(Vec<T> (&v)[kLanes<T>]) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  MHICL_UNROLL
  for (int left = kLanes<T>; left > 1; left /= 2) {
    MHICL_UNROLL
    for (int i = 0; i < left / 2; ++i) v[i] = add_neighbours<T>(v[2 * i], v[2 * i + 1], lanes);
  }
  return v[0];
}

template <class T>
struct MomentsOfTiles {
  const T* weights;  // a block's first row of weights
  int64_t weights_width, rows;
  const T* in;  // a block's first row to be weighed
  int64_t in_width, cols;
  int64_t tiles;
  T* out;  // (rows, cols), row r at out + r·out_stride
  int64_t out_stride;
};

// As many results as a vector has lanes, so that their lanes are summed together.
template <class T>
constexpr int moment_cols(int rows) {
  return at_least_one(kLanes<T> / rows);
}
template <class T>
inline constexpr int kMomentRows = at_most(4, kLanes<T>);

template <class T, int ROWS, int COLS>
void moment_block(const MomentsOfTiles<T>& p, int64_t row, int64_t col) {
  const T* weights = p.weights + row * kTile;
  const T* in = p.in + col * kTile;
  Vec<T> acc[kLanes<T>];
  MHICL_UNROLL
  for (int i = 0; i < kLanes<T>; ++i) acc[i] = Vec<T>{};
  for (int64_t tile = 0; tile < p.tiles; ++tile) {
    MHICL_UNROLL
    for (int v = 0; v < kRowVectors<T>; ++v) {
      Vec<T> x[COLS];
      MHICL_UNROLL
      for (int c = 0; c < COLS; ++c) x[c] = load(in + c * kTile + v * kLanes<T>);
      MHICL_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        const Vec<T> weight = load(weights + r * kTile + v * kLanes<T>);
        MHICL_UNROLL
        for (int c = 0; c < COLS; ++c) acc[r * COLS + c] = fma<T>(weight, x[c], acc[r * COLS + c]);
      }
    }
    weights += p.weights_width * kTile;
    in += p.in_width * kTile;
  }
  alignas(64) T sums[kLanes<T>];
  store(sums, lane_sums<T>(acc));
  MHICL_UNROLL
  for (int r = 0; r < ROWS; ++r) std::memcpy(p.out + (row + r) * p.out_stride + col, sums + r * COLS, COLS * sizeof(T));
}

template <class T, int ROWS, int COLS>
MHICL_INLINE void moment_cols(const MomentsOfTiles<T>& p, int64_t row, int64_t col, int64_t count) {
  if (count == COLS) moment_block<T, ROWS, COLS>(p, row, col);
  else if constexpr (COLS > 1) moment_cols<T, ROWS, COLS - 1>(p, row, col, count);
}

template <class T, int ROWS>
MHICL_INLINE void moment_rows(const MomentsOfTiles<T>& p, int64_t row, int64_t count) {
  if (count == ROWS) {
    constexpr int64_t most = moment_cols<T>(ROWS);
    for (int64_t col = 0; col < p.cols; col += most) {
      moment_cols<T, ROWS, int(most)>(p, row, col, std::min(most, p.cols - col));
    }
  } else if constexpr (ROWS > 1) {
    moment_rows<T, ROWS - 1>(p, row, count);
  }
}

// out[r, c] = Σ over tokens of weights_r in_c.
template <class T>
void moments_of_tiles(const MomentsOfTiles<T>& p) {
  constexpr int64_t most = kMomentRows<T>;
  int64_t shares = (p.rows + most - 1) / most;
  for (int64_t row = 0; row < p.rows; --shares) {
    const int64_t share = (p.rows - row + shares - 1) / shares;
    moment_rows<T, int(most)>(p, row, share);
    row += share;
  }
}
