// Problems with fewer rows than lanes. The numbers of one key are the lanes here, so keys and values are read as they lie:
// tables are (rows × keys), a logit is a dot product, and nothing is transposed.

// By counted vector operations. A key costs a row its whole vectors, shares of two sums over lanes and a lane's share of
// an exponential; with rows as lanes, it costs each vector of rows one operation an element and a whole exponential.
template <class T>
bool few_rows_pay(const AttentionParams<T>& p) {
  constexpr int64_t kSumOverLanes = 3, kExponential = 20;
  const int64_t rows = p.group * p.rows;
  const int64_t by_key = rows * (whole_vectors<T>(p.dim) + whole_vectors<T>(p.value_dim) + 2 * kSumOverLanes +
                                 kExponential / kLanes<T>);
  return 3 * rows <= kLanes<T> && by_key < whole_vectors<T>(rows) * (p.dim + p.value_dim + kExponential);
}

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

// The rows of one problem, all of them, and their tables.
template <class T>
class FewRows {
 public:
  FewRows(const AttentionParams<T>& p, Workspace<T>& workspace)
      : stride(padded_to_vectors<T>(p.keys)),
        p_(p),
        keys_(p, p.key, p.dim, stage(p, p.key, p.dim, workspace)),
        values_(p, p.value, p.value_dim, stage(p, p.value, p.value_dim, workspace)) {
    query = workspace.take(rows() * padded_to_vectors<T>(p.dim));
    weights = workspace.take(rows() * stride);
  }

  static int64_t size(const AttentionParams<T>& p) {
    const auto padded = Workspace<T>::padded;
    const int64_t rows = p.group * p.rows;
    const auto staged = [&](const Operand<const void*>& from, int64_t columns) {
      return KeyReader<T>::in_place(p, from) ? 0 : padded(p.keys * padded_to_vectors<T>(columns));
    };
    return staged(p.key, p.dim) + staged(p.value, p.value_dim) + padded(rows * padded_to_vectors<T>(p.dim)) +
           padded(rows * padded_to_vectors<T>(p.keys));
  }

  int64_t rows() const { return p_.group * p_.rows; }
  RowBlock block() const { return {0, rows(), rows()}; }
  KeyRows<T> keys(const Problem<T>& problem) { return keys_(problem, 0, problem.keys); }
  KeyRows<T> values(const Problem<T>& problem) { return values_(problem, 0, problem.keys); }

  // How many keys row i of a head may look at.
  int64_t seen(const Problem<T>& problem, int64_t i) const {
    return p_.causal ? std::min(problem.keys, i + 1) : problem.keys;
  }

  // What a hidden key has for a logit.
  T hidden() const { return p_.activation == Activation::softmax ? -std::numeric_limits<T>::infinity() : T(0); }

  // Fills `weights` with logits.
  void logits(const Problem<T>& problem) {
    const NextProblem<T> next(p_, problem, block());
    for (const Ahead& ahead : {next.keys(p_.key, p_.dim), next.keys(p_.value, p_.value_dim)}) fetch(ahead, 0, ahead.rows);
    const KeyRows<T> keys_of_problem = keys(problem);
    const int64_t dim = padded_to_vectors<T>(p_.dim);
    gather_rows(p_, problem, block(), p_.query, p_.dim, p_.scale, query);
    for_rows(p_, block(), [&](int64_t r, int64_t g, int64_t i) MHICL_INLINE_LAMBDA {
      T* row = weights + r * stride;
      const int64_t count = seen(problem, i);
      dot_products(keys_of_problem, count, query + r * dim, p_.dim, row);
      if (p_.mask_kind != MaskKind::none) visit_mask(problem, g, i, count, [&](int64_t l, T bias) MHICL_INLINE_LAMBDA {
        row[l] = bias == -std::numeric_limits<T>::infinity() ? hidden() : row[l] + bias;
      });
      std::fill(row + count, row + stride, hidden());
    });
  }

  // Zeroes what rows do not see in a table (rows × keys).
  void hide(const Problem<T>& problem, T* table) const {
    for_rows(p_, block(), [&](int64_t r, int64_t g, int64_t i) MHICL_INLINE_LAMBDA {
      T* row = table + r * stride;
      const int64_t count = seen(problem, i);
      if (p_.mask_kind != MaskKind::none) visit_mask(problem, g, i, count, [&](int64_t l, T bias) MHICL_INLINE_LAMBDA {
        if (bias == -std::numeric_limits<T>::infinity()) row[l] = T(0);
      });
      std::fill(row + count, row + stride, T(0));
    });
  }

  const int64_t stride;  // of tables
  T* query;              // (rows × padded dim), times the scale
  T* weights;            // (rows × stride)

 private:
  static T* stage(const AttentionParams<T>& p, const Operand<const void*>& from, int64_t columns,
                  Workspace<T>& workspace) {
    return KeyReader<T>::in_place(p, from) ? nullptr : workspace.take(p.keys * padded_to_vectors<T>(columns));
  }

  // visit(l, what the mask adds to the logit of key l, −∞ where it hides it).
  template <class Visit>
  MHICL_INLINE void visit_mask(const Problem<T>& problem, int64_t g, int64_t i, int64_t count,
                               const Visit& visit) const {
    const Operand<const void*>& mask = p_.mask;
    const int64_t row = problem.batch * mask.batch + (problem.head * p_.group + g) * mask.head + i * mask.row;
    for (int64_t l = 0; l < count; ++l) visit(l, mask_bias(p_, row + l * mask.column));
  }

  const AttentionParams<T>& p_;
  KeyReader<T> keys_, values_;
};

template <class T>
class FewRowsForward {
 public:
  explicit FewRowsForward(const AttentionForwardParams<T>& params)
      : o_(params),
        p_(params.attention),
        workspace_(FewRows<T>::size(p_) + Workspace<T>::padded(padded_to_vectors<T>(p_.value_dim))),
        rows_(p_, workspace_),
        out_(workspace_.take(padded_to_vectors<T>(p_.value_dim))) {}

  void run(const Problem<T>& problem) {
    rows_.logits(problem);
    const KeyRows<T> values = rows_.values(problem);
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      T* weights = rows_.weights + r * rows_.stride;
      const int64_t row = problem.first_row(p_) + r;
      const T factor = activate(weights, row);
      weighted_sum(values, problem.keys, weights, p_.value_dim, out_);
      write_row(out_, p_.value_dim, factor, o_.out, row * p_.value_dim, p_.storage);
      if (o_.weights == nullptr) continue;
      for (int64_t l = 0; l < p_.keys; ++l) write<T>(o_.weights, row * p_.keys + l, weights[l] * factor, p_.storage);
    }
  }

 private:
  // Logits become weights up to a factor, which is returned.
  T activate(T* weights, int64_t row) {
    if (p_.activation == Activation::relu) rectify(weights, kLanes<T>, rows_.stride / kLanes<T>);
    if (p_.activation != Activation::softmax) return T(1);
    T top, total;
    row_exponentials(weights, rows_.stride, top, total);
    if (o_.maxima != nullptr) {
      o_.maxima[row] = top;
      o_.sums[row] = total;
    }
    if (o_.lse != nullptr) o_.lse[row] = top + std::log(total);
    return total == T(0) ? T(0) : T(1) / total;
  }

  const AttentionForwardParams<T>& o_;
  const AttentionParams<T>& p_;
  Workspace<T> workspace_;
  FewRows<T> rows_;
  T* out_;
};

template <class T>
class FewRowsBackward {
 public:
  explicit FewRowsBackward(const AttentionBackwardParams<T>& params)
      : o_(params), p_(params.attention), workspace_(size()), rows_(p_, workspace_) {
    gradients_ = workspace_.take(rows_.rows() * rows_.stride);
    grad_out_ = workspace_.take(rows_.rows() * padded_to_vectors<T>(p_.value_dim));
    grad_query_ = workspace_.take(padded_to_vectors<T>(p_.dim));
    sums_ = p_.storage == Storage::native ? nullptr : workspace_.take(p_.keys * std::max(p_.dim, p_.value_dim));
  }

  void run(const Problem<T>& problem) {
    const int64_t first_row = problem.first_row(p_), value_dim = padded_to_vectors<T>(p_.value_dim);
    rows_.logits(problem);
    gather_rows(p_, problem, rows_.block(), o_.grad_out, p_.value_dim, T(1), grad_out_);
    for (int64_t r = 0; r < rows_.rows(); ++r) activate(first_row + r, r);
    forget_rows(problem);
    if (o_.grad_value != nullptr) {
      sum_over_rows(problem, rows_.weights, grad_out_, p_.value_dim, o_.grad_value);
    }
    const KeyRows<T> values = rows_.values(problem);
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      dot_products(values, problem.keys, grad_out_ + r * value_dim, p_.value_dim, gradients_ + r * rows_.stride);
    }
    if (o_.grad_weights.data != nullptr) add_grad_weights(problem);
    rows_.hide(problem, gradients_);
    for (int64_t r = 0; r < rows_.rows(); ++r) differentiate(first_row + r, r);
    if (o_.grad_key != nullptr) sum_over_rows(problem, gradients_, rows_.query, p_.dim, o_.grad_key);
    if (o_.grad_query == nullptr) return;
    const KeyRows<T> keys = rows_.keys(problem);
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      weighted_sum(keys, problem.keys, gradients_ + r * rows_.stride, p_.dim, grad_query_);
      write_row(grad_query_, p_.dim, p_.scale, o_.grad_query, (first_row + r) * p_.dim, p_.storage);
    }
  }

 private:
  int64_t size() const {
    const auto padded = Workspace<T>::padded;
    const int64_t rows = p_.group * p_.rows;
    return FewRows<T>::size(p_) + padded(rows * padded_to_vectors<T>(p_.keys)) +
           padded(rows * padded_to_vectors<T>(p_.value_dim)) + padded(padded_to_vectors<T>(p_.dim)) +
           padded(p_.keys * std::max(p_.dim, p_.value_dim));
  }

  void activate(int64_t row, int64_t r) {
    T* weights = rows_.weights + r * rows_.stride;
    const int64_t vectors = rows_.stride / kLanes<T>;
    if (p_.activation == Activation::relu) rectify(weights, kLanes<T>, vectors);
    if (p_.activation != Activation::softmax) return;
    const bool empty = o_.sums[row] == T(0);
    const Vec<T> shift = broadcast<T>(empty ? T(0) : o_.maxima[row]);
    const Vec<T> inverse = broadcast<T>(empty ? T(0) : T(1) / o_.sums[row]);
    for (int64_t v = 0; v < vectors; ++v) {
      T* at = weights + v * kLanes<T>;
      store(at, exp_nonpositive<T>(load(at) - shift) * inverse);
    }
  }

  // Takes rows that see nothing out of sums over rows: zero weights alone do not silence NaN and infinity.
  void forget_rows(const Problem<T>& problem) {
    if (p_.mask_kind == MaskKind::none) return;
    const int64_t dim = padded_to_vectors<T>(p_.dim), value_dim = padded_to_vectors<T>(p_.value_dim);
    for_rows(p_, rows_.block(), [&](int64_t r, int64_t g, int64_t i) MHICL_INLINE_LAMBDA {
      if (sees_a_key(p_, problem, g, i)) return;
      std::fill_n(rows_.query + r * dim, dim, T(0));
      std::fill_n(grad_out_ + r * value_dim, value_dim, T(0));
    });
  }

  void differentiate(int64_t row, int64_t r) {
    constexpr int W = kLanes<T>;
    const T* weights = rows_.weights + r * rows_.stride;
    T* gradients = gradients_ + r * rows_.stride;
    alignas(64) T mean[W] = {};
    const int64_t vectors = rows_.stride / W;
    if (p_.activation == Activation::softmax) {
      add_products(weights, gradients, W, vectors, mean);
      const T lse = o_.grad_lse == nullptr ? T(0) : o_.grad_lse[row];
      store(mean, sum_by_head<T>(load(mean), 1) - broadcast<T>(lse));
    }
    logit_gradients(p_.activation, weights, gradients, W, vectors, mean);
    if (o_.grad_logits != nullptr) std::copy_n(gradients, p_.keys, o_.grad_logits + row * p_.keys);
  }

  void add_grad_weights(const Problem<T>& problem) {
    const Operand<const void*>& from = o_.grad_weights;
    for_rows(p_, rows_.block(), [&](int64_t r, int64_t g, int64_t i) MHICL_INLINE_LAMBDA {
      const int64_t row = problem.batch * from.batch + (problem.head * p_.group + g) * from.head + i * from.row;
      for (int64_t l = 0; l < problem.keys; ++l) {
        gradients_[r * rows_.stride + l] += read<T>(from.data, row + l * from.column, p_.storage);
      }
    });
  }

  // out (keys × dim) = tableᵀ · rows.
  void sum_over_rows(const Problem<T>& problem, const T* table, const T* rows, int64_t dim, void* out) {
    const int64_t base = problem.index * p_.keys * dim, used = problem.keys * dim;
    T* sums = p_.storage == Storage::native ? static_cast<T*>(out) + base : sums_;
    gemm<T>({.rows = problem.keys, .cols = dim, .depth = rows_.rows(), .a = table, .a_stride = rows_.stride,
             .unit_rows = true, .b = rows, .b_stride = padded_to_vectors<T>(dim), .c = sums, .c_stride = dim,
             .accumulate = false});
    std::fill(sums + used, sums + p_.keys * dim, T(0));
    if (p_.storage == Storage::native) return;
    for (int64_t i = 0; i < p_.keys * dim; ++i) write<T>(out, base + i, sums[i], p_.storage);
  }

  const AttentionBackwardParams<T>& o_;
  const AttentionParams<T>& p_;
  Workspace<T> workspace_;
  FewRows<T> rows_;
  T *gradients_, *grad_out_, *grad_query_, *sums_;
};
