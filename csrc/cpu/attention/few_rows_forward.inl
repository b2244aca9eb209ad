// Attention of few rows, forward.

template <class T>
class FewRowsForward {
 public:
  explicit FewRowsForward(const AttentionForwardParams<T>& params)
      : o_(params),
        p_(params.attention),
        workspace_(FewRows<T>::size(p_) + Workspace<T>::padded(out_size())),
        rows_(p_, workspace_),
        out_(workspace_.take(out_size())) {}

  void run(const Problem<T>& problem) {
    rows_.logits(problem);
    const KeyRows<T> values = rows_.values(problem);
    const auto factor = [&](int64_t r) MHICL_INLINE_LAMBDA { return factors_[r]; };
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      T* weights = rows_.weights + r * rows_.stride;
      const int64_t row = problem.first_row(p_) + r;
      factors_[r] = activate(weights, row);
      weighted_sum(values, problem.keys, weights, p_.value_dim, out_ + r * padded_to_vectors<T>(p_.value_dim));
      if (o_.weights == nullptr) continue;
      for (int64_t l = 0; l < p_.keys; ++l) {
        write<T>(o_.weights, row * p_.keys + l, weights[l] * factors_[r], p_.storage);
      }
    }
    scatter_rows(p_, problem, rows_.block(), out_, p_.value_dim, factor, o_.out);
  }

 private:
  int64_t out_size() const { return p_.group * p_.rows * padded_to_vectors<T>(p_.value_dim); }

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
  T factors_[kLanes<T>];
};
