// Softmax over the tokens of one prompt in tiles, and its derivative.

// The tokens of one prompt, in tiles: which of the last tile's are there.
template <class T>
struct TokenTiles {
  int64_t count, used;  // tiles; vectors of each row that hold tokens, one after another
  VecBits<T> absent;    // in the last of these

  explicit TokenTiles(int64_t tokens)
      : count(tiles_of(tokens)), used((tokens + kLanes<T> - 1) / kLanes<T>) {
    for (int i = 0; i < kLanes<T>; ++i) absent[i] = (used - 1) * kLanes<T> + i < tokens ? 0 : -1;
  }
};

// Adjacent rows of a block, one a head, as vectors: `at(i)` is vector i of the first head's row, kTile before the next's.
template <class T>
struct HeadRows {
  T* first;
  int64_t width;

  MHICL_INLINE T* at(int64_t vector) const {
    constexpr int vectors = kRowVectors<T>;
    return first + vector / vectors * width * kTile + vector % vectors * kLanes<T>;
  }
  MHICL_INLINE HeadRows from(int64_t head) const { return {first + head * kTile, width}; }
};

// Heads whose softmax is taken together: each one is a chain of operations that wait for each other.
inline constexpr int kHeadsTogether = 4;

template <class T, int HEADS>
MHICL_INLINE void each_sum(Vec<T> (&sums)[HEADS]) {
  MHICL_UNROLL
  for (int shift = kLanes<T> / 2; shift > 0; shift /= 2) {
    const Rotation<T> by(shift);
    MHICL_UNROLL
    for (int h = 0; h < HEADS; ++h) sums[h] += rotate<T>(sums[h], by);
  }
}

template <class T, int HEADS>
MHICL_INLINE void each_largest(Vec<T> (&tops)[HEADS]) {
  MHICL_UNROLL
  for (int shift = kLanes<T> / 2; shift > 0; shift /= 2) {
    const Rotation<T> by(shift);
    MHICL_UNROLL
    for (int h = 0; h < HEADS; ++h) tops[h] = max<T>(tops[h], rotate<T>(tops[h], by));
  }
}

template <class T, int HEADS>
void softmax_of_heads(const HeadRows<T>& rows, const TokenTiles<T>& tiles) {
  const Vec<T> lowest = broadcast<T>(-std::numeric_limits<T>::infinity());
  Vec<T> top[HEADS], sum[HEADS];
  MHICL_UNROLL
  for (int h = 0; h < HEADS; ++h) {
    T* const last = rows.at(tiles.used - 1) + h * kTile;
    top[h] = select<T>(tiles.absent, lowest, load(last));
    store(last, top[h]);
    sum[h] = Vec<T>{};
  }
  for (int64_t i = 0; i + 1 < tiles.used; ++i) {
    const T* const row = rows.at(i);
    MHICL_UNROLL
    for (int h = 0; h < HEADS; ++h) top[h] = max<T>(top[h], load(row + h * kTile));
  }
  each_largest<T>(top);
  for (int64_t i = 0; i < tiles.used; ++i) {
    T* const row = rows.at(i);
    MHICL_UNROLL
    for (int h = 0; h < HEADS; ++h) {
      const Vec<T> e = exp_nonpositive<T>(load(row + h * kTile) - top[h]);
      store(row + h * kTile, e);
      sum[h] += e;
    }
  }
  each_sum<T>(sum);
  MHICL_UNROLL
  for (int h = 0; h < HEADS; ++h) sum[h] = broadcast<T>(T(1)) / sum[h];
  for (int64_t i = 0; i < tiles.used; ++i) {
    T* const row = rows.at(i);
    MHICL_UNROLL
    for (int h = 0; h < HEADS; ++h) store(row + h * kTile, load(row + h * kTile) * sum[h]);
  }
  for (int64_t i = tiles.used; i < tiles.count * kRowVectors<T>; ++i) {
    MHICL_UNROLL
    for (int h = 0; h < HEADS; ++h) store(rows.at(i) + h * kTile, Vec<T>{});
  }
}

template <class T, int HEADS>
void softmax_of_heads_backward(const HeadRows<T>& probabilities, const HeadRows<T>& gradients,
                               const TokenTiles<T>& tiles) {
  Vec<T> mean[HEADS];
  MHICL_UNROLL
  for (int h = 0; h < HEADS; ++h) mean[h] = Vec<T>{};
  for (int64_t i = 0; i < tiles.used; ++i) {
    const T *const p = probabilities.at(i), *const g = gradients.at(i);
    MHICL_UNROLL
    for (int h = 0; h < HEADS; ++h) mean[h] = fma<T>(load(p + h * kTile), load(g + h * kTile), mean[h]);
  }
  each_sum<T>(mean);
  for (int64_t i = 0; i < tiles.count * kRowVectors<T>; ++i) {
    const T* const p = probabilities.at(i);
    T* const g = gradients.at(i);
    MHICL_UNROLL
    for (int h = 0; h < HEADS; ++h) store(g + h * kTile, load(p + h * kTile) * (load(g + h * kTile) - mean[h]));
  }
}

// Calls body with each group of heads' first and their number as a constant.
template <int MOST, class Body>
MHICL_INLINE void over_heads(int64_t head, int64_t heads, const Body& body) {
  for (; heads - head >= MOST; head += MOST) body(head, std::integral_constant<int, MOST>{});
  if constexpr (MOST > 1) over_heads<MOST / 2>(head, heads, body);
}

// Turns each head's row of logits into probabilities, in place; tokens that are not there get 0.
template <class T>
void softmax_of_tiles(const HeadRows<T>& rows, int64_t heads, const TokenTiles<T>& tiles) {
  if (tiles.used == 0) return;
  over_heads<kHeadsTogether>(0, heads, [&](int64_t head, auto count) {
    softmax_of_heads<T, decltype(count)::value>(rows.from(head), tiles);
  });
}

// ∂s_l = p_l (∂p_l − Σ_m p_m ∂p_m), in place of ∂p.
template <class T>
void softmax_of_tiles_backward(const HeadRows<T>& probabilities, const HeadRows<T>& gradients, int64_t heads,
                               const TokenTiles<T>& tiles) {
  over_heads<kHeadsTogether>(0, heads, [&](int64_t head, auto count) {
    softmax_of_heads_backward<T, decltype(count)::value>(probabilities.from(head), gradients.from(head), tiles);
  });
}
