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

// The rows of one problem, all of them, and their tables.
template <class T>
class FewRows {
 public:
  FewRows(const AttentionParams<T>& p, Workspace<T>& workspace)
      : stride(padded_to_vectors<T>(p.keys)),
        p_(p),
        keys_(p, p.key, p.dim, p.keys, workspace),
        values_(p, p.value, p.value_dim, p.keys, workspace) {
    query = workspace.take(rows() * padded_to_vectors<T>(p.dim));
    weights = workspace.take(rows() * stride);
  }

  static int64_t size(const AttentionParams<T>& p) {
    const auto padded = Workspace<T>::padded;
    const int64_t rows = p.group * p.rows;
    return KeyReader<T>::size(p, p.key, p.dim, p.keys) + KeyReader<T>::size(p, p.value, p.value_dim, p.keys) +
           padded(rows * padded_to_vectors<T>(p.dim)) + padded(rows * padded_to_vectors<T>(p.keys));
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
  // visit(l, what the mask adds to the logit of key l, −∞ where it hides it).
  template <class Visit>
  MHICL_INLINE void visit_mask(const Problem<T>& problem, int64_t g, int64_t i, int64_t count,
                               const Visit& visit) const {
    const int64_t row = row_offset(p_, problem, p_.mask, g, i);
    for (int64_t l = 0; l < count; ++l) visit(l, mask_bias(p_, row + l * p_.mask.column));
  }

  const AttentionParams<T>& p_;
  KeyReader<T> keys_, values_;
};
