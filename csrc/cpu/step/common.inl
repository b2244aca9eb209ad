// What the fused steps share: the prompts of a chunk, their tokens, attention, and small products with few entries.

// Deals out a workspace that somebody else owns, in cache-line pieces with a vector's slack behind each; without one it
// only counts.
template <class T>
class Pieces {
 public:
  explicit Pieces(T* begin) : begin_(begin) {}
  T* take(int64_t elements) {
    T* piece = begin_ == nullptr ? nullptr : begin_ + taken_;
    taken_ += Workspace<T>::padded(elements);
    return piece;
  }
  int64_t taken() const { return taken_; }

 private:
  T* begin_;
  int64_t taken_ = 0;
};

template <class T>
MHICL_INLINE int64_t padded(int64_t count) {
  return (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// Σ_j a_j b_j, in an order that depends on nothing but the count.
template <class T>
MHICL_INLINE T inner(const T* a, const T* b, int64_t count) {
  Vec<T> sum{};
  int64_t j = 0;
  for (; j + kLanes<T> <= count; j += kLanes<T>) sum = fma<T>(load(a + j), load(b + j), sum);
  const Head<T> rest(count - j);
  sum = fma<T>(load(a + j, rest), load(b + j, rest), sum);
  return sum_by_head<T>(sum, 1)[0];
}

// y += factor · x.
template <class T>
MHICL_INLINE void add_scaled(T factor, const T* x, T* y, int64_t count) {
  const Vec<T> by = broadcast<T>(factor);
  int64_t j = 0;
  for (; j + kLanes<T> <= count; j += kLanes<T>) store(y + j, fma<T>(by, load(x + j), load(y + j)));
  const Head<T> rest(count - j);
  store(y + j, fma<T>(by, load(x + j, rest), load(y + j, rest)), rest);
}

// y *= factor.
template <class T>
MHICL_INLINE void scale_by(T factor, T* y, int64_t count) {
  const Vec<T> by = broadcast<T>(factor);
  int64_t j = 0;
  for (; j + kLanes<T> <= count; j += kLanes<T>) store(y + j, by * load(y + j));
  const Head<T> rest(count - j);
  store(y + j, by * load(y + j, rest), rest);
}

// max |y|; NaNs don't count.
template <class T>
MHICL_INLINE T largest_magnitude(const T* y, int64_t count) {
  Vec<T> top{};
  for (int64_t j = 0; j < count; j += kLanes<T>) {
    const Vec<T> x = load(y + j, Head<T>(std::min<int64_t>(kLanes<T>, count - j)));
    top = max<T>(max<T>(x, -x), top);
  }
  return largest_by_head<T>(top, 1)[0];
}

// y += a ∘ b.
template <class T>
MHICL_INLINE void add_product(const T* a, const T* b, T* y, int64_t count) {
  int64_t j = 0;
  for (; j + kLanes<T> <= count; j += kLanes<T>) store(y + j, fma<T>(load(a + j), load(b + j), load(y + j)));
  const Head<T> rest(count - j);
  store(y + j, fma<T>(load(a + j, rest), load(b + j, rest), load(y + j, rest)), rest);
}

// The attention of one prompt: a block of tiles whose rows are what the logits read, perhaps more, and last the
// probabilities of each head; and a block of their gradients.
template <class T>
struct PromptAttention {
  TokenTiles<T> tiles;
  int64_t heads, width, probabilities;  // rows of the block; the first row of probabilities
  T *block, *gradients;

  PromptAttention(int64_t context_length, int64_t rows, int64_t heads, Pieces<T>& pieces)
      : tiles(context_length), heads(heads), width(rows + heads), probabilities(rows) {
    block = pieces.take(tiles.count * width * kTile);
    gradients = pieces.take(tiles.count * heads * kTile);
  }

  HeadRows<T> probability_rows() const { return {block + probabilities * kTile, width}; }

  // p_h = softmax of panel_h · rows.
  void attend(const T* panel, int64_t stride, int64_t depth) const {
    combine<T>({.panel = panel, .panel_stride = stride, .rows = heads, .depth = depth, .in = block, .in_width = width,
                .out = block + probabilities * kTile, .out_width = width, .tiles = tiles.count});
    softmax_of_tiles<T>(probability_rows(), heads, tiles);
  }

  // ∂s from ∂p_h = panel_h · rows, of which `depth` from `first` on count; they may reach into the probabilities.
  void differentiate(const T* panel, int64_t stride, int64_t first, int64_t depth) const {
    combine<T>({.panel = panel, .panel_stride = stride, .rows = heads, .depth = depth, .in = block + first * kTile,
                .in_width = width, .out = gradients, .out_width = heads, .tiles = tiles.count});
    softmax_of_tiles_backward<T>(probability_rows(), {gradients, heads}, heads, tiles);
  }

  // out[h, k] = Σ_l p_lh row_k.
  void average(int64_t rows, T* out, int64_t stride) const {
    moments_of_tiles<T>({.weights = block + probabilities * kTile, .weights_width = width, .rows = heads, .in = block,
                         .in_width = width, .cols = rows, .tiles = tiles.count, .out = out, .out_stride = stride});
  }

  // out[h, k] = Σ_l ∂s_lh row_k.
  void weigh(int64_t rows, T* out, int64_t stride) const {
    moments_of_tiles<T>({.weights = gradients, .weights_width = heads, .rows = heads, .in = block, .in_width = width,
                         .cols = rows, .tiles = tiles.count, .out = out, .out_stride = stride});
  }
};

// Projected queries of a chunk, r (count, row) = ξ_q · projections (d, row), and the gradient of the projections.
template <class T>
struct ChunkQueries {
  int64_t dim_x, row;
  const T* queries;  // (count, stride), covariates first
  int64_t stride;

  void project(const T* projections, int64_t count, T* out) const {
    gemm<T>({.rows = count, .cols = row, .depth = dim_x, .a = queries, .a_stride = stride, .unit_rows = false,
             .b = projections, .b_stride = row, .c = out, .c_stride = row, .accumulate = false});
  }
  void add_gradient(const T* grad_projected, int64_t count, T* sums, bool accumulate) const {
    gemm<T>({.rows = dim_x, .cols = row, .depth = count, .a = queries, .a_stride = stride, .unit_rows = true,
             .b = grad_projected, .b_stride = row, .c = sums, .c_stride = row, .accumulate = accumulate});
  }
};
