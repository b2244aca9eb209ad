// Attention of few rows, backward; the mathematics is that of backward.inl.

template <class T>
class FewRowsBackward {
 public:
  explicit FewRowsBackward(const AttentionBackwardParams<T>& params)
      : o_(params),
        p_(params.attention),
        workspace_(size()),
        rows_(p_, workspace_),
        grad_key_(p_, params.grad_key, p_.dim, workspace_),
        grad_value_(p_, params.grad_value, p_.value_dim, workspace_) {
    gradients_ = workspace_.take(rows_.rows() * rows_.stride);
    grad_out_ = workspace_.take(rows_.rows() * padded_to_vectors<T>(p_.value_dim));
    grad_query_ = workspace_.take(rows_.rows() * padded_to_vectors<T>(p_.dim));
  }

  void run(const Problem<T>& problem) {
    const int64_t first_row = problem.first_row(p_), value_dim = padded_to_vectors<T>(p_.value_dim);
    rows_.logits(problem);
    gather_rows(p_, problem, rows_.block(), o_.grad_out, p_.value_dim, T(1), grad_out_);
    for (int64_t r = 0; r < rows_.rows(); ++r) activate(first_row + r, r);
    forget_rows(problem);
    sum_over_rows(problem, rows_.weights, grad_out_, p_.value_dim, grad_value_);
    const KeyRows<T> values = rows_.values(problem);
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      dot_products(values, problem.keys, grad_out_ + r * value_dim, p_.value_dim, gradients_ + r * rows_.stride);
    }
    if (o_.grad_weights.data != nullptr) add_grad_weights(problem);
    rows_.hide(problem, gradients_);
    for (int64_t r = 0; r < rows_.rows(); ++r) differentiate(first_row + r, r);
    sum_over_rows(problem, gradients_, rows_.query, p_.dim, grad_key_);
    if (o_.grad_query.data != nullptr) differentiate_queries(problem);
  }

 private:
  int64_t size() const {
    const auto padded = Workspace<T>::padded;
    const int64_t rows = p_.group * p_.rows;
    return FewRows<T>::size(p_) + padded(rows * padded_to_vectors<T>(p_.keys)) +
           padded(rows * padded_to_vectors<T>(p_.value_dim)) + padded(rows * padded_to_vectors<T>(p_.dim)) +
           KeyGradient<T>::size(p_, o_.grad_key, p_.dim) + KeyGradient<T>::size(p_, o_.grad_value, p_.value_dim);
  }

  void activate(int64_t row, int64_t r) {
    alignas(64) T shift[kLanes<T>] = {}, inverse[kLanes<T>] = {};
    if (p_.activation == Activation::softmax && o_.sums[row] != T(0)) {
      std::fill_n(shift, kLanes<T>, o_.maxima[row]);
      std::fill_n(inverse, kLanes<T>, T(1) / o_.sums[row]);
    }
    weigh(p_.activation, rows_.weights + r * rows_.stride, kLanes<T>, rows_.stride / kLanes<T>, shift, inverse);
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
      const int64_t row = row_offset(p_, problem, from, g, i);
      for (int64_t l = 0; l < problem.keys; ++l) {
        gradients_[r * rows_.stride + l] += read<T>(from.data, row + l * from.column, p_.storage);
      }
    });
  }

  // sums (keys × dim) = tableᵀ · rows.
  void sum_over_rows(const Problem<T>& problem, const T* table, const T* rows, int64_t dim, KeyGradient<T>& sums) {
    if (!sums.wanted()) return;
    sums.start(problem);
    gemm<T>({.rows = problem.keys, .cols = dim, .depth = rows_.rows(), .a = table, .a_stride = rows_.stride,
             .unit_rows = true, .b = rows, .b_stride = padded_to_vectors<T>(dim), .c = sums.rows(0),
             .c_stride = sums.stride(), .accumulate = false});
    sums.zero(problem.keys, p_.keys);
    sums.forget_unseen(problem, 0, p_.keys);
    sums.write(0, p_.keys);
  }

  void differentiate_queries(const Problem<T>& problem) {
    const KeyRows<T> keys = rows_.keys(problem);
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      weighted_sum(keys, problem.keys, gradients_ + r * rows_.stride, p_.dim,
                   grad_query_ + r * padded_to_vectors<T>(p_.dim));
    }
    const auto factor = [&](int64_t) MHICL_INLINE_LAMBDA { return p_.scale; };
    scatter_rows(p_, problem, rows_.block(), grad_query_, p_.dim, factor, o_.grad_query);
  }

  const AttentionBackwardParams<T>& o_;
  const AttentionParams<T>& p_;
  Workspace<T> workspace_;
  FewRows<T> rows_;
  KeyGradient<T> grad_key_, grad_value_;
  T *gradients_, *grad_out_, *grad_query_;
};
