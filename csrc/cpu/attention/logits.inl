// Logits of a block of rows, a block of keys at a time.

template <class T>
class Logits {
 public:
  const T* query_rows;  // (width × padded dim), times the scale

  static int64_t size(const AttentionParams<T>& p) {
    const auto padded = Workspace<T>::padded;
    const int64_t rows = p.blocking.rows, dim = padded_to_vectors<T>(p.dim);
    return padded(rows * dim) + padded(dim * rows) + (may_hide(p) ? padded(key_block(p) * rows) : 0);
  }

  Logits(const AttentionParams<T>& p, Workspace<T>& workspace) : p_(p) {
    const int64_t rows = p.blocking.rows, dim = padded_to_vectors<T>(p.dim);
    query_rows = rows_ = workspace.take(rows * dim);
    columns_ = workspace.take(dim * rows);
    bias_ = may_hide(p) ? workspace.take(key_block(p) * rows) : nullptr;
  }

  // key_by_key: where a row does not see a key must be in the table Sight::bias, not only in the causal rule.
  void start(const Problem<T>& problem, const RowBlock& block, bool key_by_key) {
    problem_ = &problem;
    block_ = block;
    gather_rows(p_, problem, block, p_.query, p_.dim, p_.scale, rows_);
    transpose(rows_, padded_to_vectors<T>(p_.dim), block.width, p_.dim, columns_, block.width);
    if (p_.causal) limits_.find(p_, block);
    tabulated_ = key_by_key || p_.mask_kind != MaskKind::none;
  }

  // Takes a row that sees nothing out of sums over rows.
  void forget_row(int64_t r) {
    const int64_t stride = padded_to_vectors<T>(p_.dim);
    std::fill_n(rows_ + r * stride, stride, T(0));
  }

  // How many of the problem's keys anybody in the block sees.
  int64_t keys() const {
    if (!p_.causal) return problem_->keys;
    return std::min(problem_->keys, limits_.any[block_.width / kLanes<T> - 1]);
  }

  // Fills table (count × width) with the logits of keys [first, first + count).
  Sight<T> operator()(const KeyRows<T>& keys, int64_t first, int64_t count, T* table) {
    Sight<T> sight(p_.causal ? &limits_ : nullptr, block_, first, count);
    const NextProblem<T> next(p_, *problem_, block_);
    keys_by_rows(sight, keys, p_.dim, columns_, table, next.keys(p_.key, p_.dim), next.queries(p_.query, p_.dim));
    const T hidden = p_.activation == Activation::softmax ? -std::numeric_limits<T>::infinity() : T(0);
    if (tabulated_) {
      fill_bias(p_, *problem_, block_, sight.causal, first, count, bias_);
      sight.bias = bias_;
      hide<T, true>(table, sight, hidden);
    } else if (p_.causal) {
      hide<T, false>(table, sight, hidden);
    }
    return sight;
  }

 private:
  const AttentionParams<T>& p_;
  const Problem<T>* problem_ = nullptr;
  RowBlock block_{};
  CausalLimits<T> limits_;
  bool tabulated_ = false;
  T *rows_, *columns_, *bias_;
};
