// General attention, backward, with weights w computed again from the logits s = scale · q kᵀ:
//   ∂v_l = Σ_r w_rl ∂o_r,  ∂w_rl = ∂o_r · v_l,  ∂s from ∂w (weights.inl),  ∂q_r = scale Σ_l ∂s_rl k_l,
//   ∂k_l = Σ_r ∂s_rl (scale q_r).
// The softmax's Σ_l w_l ∂w_l equals o · ∂o, but is summed from the very products it is subtracted from: where a row has
// almost all its weight on one key, they cancel, and what is left must not be the rounding of o · ∂o.

template <class T>
class AttentionBackward {
 public:
  explicit AttentionBackward(const AttentionBackwardParams<T>& params)
      : o_(params),
        p_(params.attention),
        wants_logits_(params.grad_query.data != nullptr || params.grad_key.data != nullptr ||
                      params.grad_logits != nullptr || params.means != nullptr),
        knows_means_(params.attention.activation != Activation::softmax || params.known_means != nullptr),
        workspace_(size()),
        logits_(p_, workspace_),
        keys_(p_, p_.key, p_.dim, workspace_),
        values_(p_, p_.value, p_.value_dim, key_block(p_), workspace_),
        grad_key_(p_, params.grad_key, p_.dim, workspace_),
        grad_value_(p_, params.grad_value, p_.value_dim, workspace_) {
    const int64_t dim = padded_to_vectors<T>(p_.dim), value_dim = padded_to_vectors<T>(p_.value_dim);
    weights_ = workspace_.take(key_block(p_) * p_.blocking.rows);
    gradients_ = workspace_.take(key_block(p_) * p_.blocking.rows);
    grad_out_rows_ = workspace_.take(p_.blocking.rows * value_dim);
    grad_out_columns_ = workspace_.take(value_dim * p_.blocking.rows);
    query_sums_ = workspace_.take(dim * p_.blocking.rows);
    query_rows_ = workspace_.take(dim * p_.blocking.rows);
  }

  void run(const AttentionRange& range) {
    for (int64_t i = range.first_problem; i < range.last_problem; ++i) {
      const Problem<T> problem(p_, i);
      const bool key_by_key = keys_.start(problem);
      grad_key_.start(problem);
      grad_value_.start(problem);
      const int64_t first_key = range.first_keys * p_.blocking.keys;
      const int64_t last_key = std::min(p_.keys, range.last_keys * p_.blocking.keys);
      for (int64_t b = range.first_rows; b < range.last_rows; ++b) {
        const RowBlock block = row_block(p_, b);
        logits_.start(problem, block, key_by_key);
        start(problem, block);
        if (wants_logits_ && !knows_means_ && !in_one_block()) sum_means(problem, block);
        const int64_t seen = std::min(last_key, logits_.keys());
        for (int64_t first = first_key; first < seen; first += p_.blocking.keys) {
          differentiate(problem, block, first, std::min(p_.blocking.keys, seen - first), b == range.first_rows);
        }
        if (b == range.first_rows) {  // keys that it does not see have no sum yet for other blocks to add to
          grad_key_.zero(std::max(seen, first_key), last_key);
          grad_value_.zero(std::max(seen, first_key), last_key);
        }
        if (o_.grad_query.data != nullptr) write_query(problem, block);
        if (o_.means != nullptr) std::copy_n(mean_, block.count, o_.means + problem.first_row(p_) + block.first);
      }
      for (const KeyGradient<T>* gradient : {&grad_key_, &grad_value_}) {
        gradient->forget_unseen(problem, first_key, last_key);
        gradient->write(first_key, last_key);
      }
    }
  }

 private:
  static constexpr int64_t kRows = kBlockVectors * kLanes<T>;

  int64_t size() const {
    const auto padded = Workspace<T>::padded;
    const int64_t dim = padded_to_vectors<T>(p_.dim), value_dim = padded_to_vectors<T>(p_.value_dim);
    return Logits<T>::size(p_) + KeySums<T>::size(p_, p_.key, p_.dim) +
           KeyReader<T>::size(p_, p_.value, p_.value_dim, key_block(p_)) +
           KeyGradient<T>::size(p_, o_.grad_key, p_.dim) + KeyGradient<T>::size(p_, o_.grad_value, p_.value_dim) +
           2 * padded(key_block(p_) * p_.blocking.rows) + 2 * padded(p_.blocking.rows * value_dim) +
           2 * padded(dim * p_.blocking.rows);
  }

  void start(const Problem<T>& problem, const RowBlock& block) {
    const int64_t stride = padded_to_vectors<T>(p_.value_dim), row = problem.first_row(p_) + block.first;
    gather_rows(p_, problem, block, o_.grad_out, p_.value_dim, T(1), grad_out_rows_);
    std::fill_n(shift_, kRows, T(0));
    std::fill_n(inverse_, kRows, T(0));
    std::fill_n(mean_, kRows, T(0));
    if (p_.activation == Activation::softmax) {
      for (int64_t r = 0; r < block.count; ++r) start_row(row + r, r, grad_out_rows_ + r * stride);
    } else if (p_.mask_kind != MaskKind::none) {
      for_rows(p_, block, [&](int64_t r, int64_t g, int64_t i) MHICL_INLINE_LAMBDA {
        if (!sees_a_key(p_, problem, g, i)) forget_row(r, grad_out_rows_ + r * stride);
      });
    }
    transpose(grad_out_rows_, stride, block.width, p_.value_dim, grad_out_columns_, block.width);
    if (logits_.keys() == 0) std::fill_n(query_sums_, p_.dim * block.width, T(0));
  }

  // Takes a row that sees nothing out of sums over rows: zero weights alone do not silence NaN and infinity.
  void forget_row(int64_t r, T* grad_out) {
    std::fill_n(grad_out, padded_to_vectors<T>(p_.value_dim), T(0));
    logits_.forget_row(r);
  }

  // The softmax's constants of a row: ∂lse/∂s_l = w_l, so −∂lse adds to the mean.
  void start_row(int64_t row, int64_t r, T* grad_out) {
    if (o_.sums[row] == T(0)) {
      forget_row(r, grad_out);
      return;
    }
    shift_[r] = o_.maxima[row];
    inverse_[r] = T(1) / o_.sums[row];
    if (o_.known_means != nullptr) mean_[r] = o_.known_means[row];
    else if (o_.grad_lse != nullptr) mean_[r] = -o_.grad_lse[row];
  }

  // The weights of a block of keys, and of their gradients what does not depend on other keys.
  Sight<T> weigh_keys(const Problem<T>& problem, const RowBlock& block, int64_t first, int64_t count) {
    const Sight<T> sight = logits_(keys_.rows(problem, first, count), first, count, weights_);
    for (int v = 0; v < sight.vectors; ++v) {
      const int64_t lane = v * kLanes<T>;
      weigh(p_.activation, weights_ + lane, block.width, sight.seen[v], shift_ + lane, inverse_ + lane);
    }
    if (!wants_logits_) return sight;
    const NextProblem<T> next(p_, problem, block);
    keys_by_rows(sight, values_(problem, first, count), p_.value_dim, grad_out_columns_, gradients_,
                 next.keys(p_.value, p_.value_dim), next.queries(o_.grad_out, p_.value_dim));
    if (o_.grad_weights.data != nullptr) add_grad_weights(problem, block, sight);
    hide<T, false>(gradients_, sight, T(0));
    return sight;
  }

  bool in_one_block() const { return logits_.keys() <= p_.blocking.keys; }

  void add_means(const RowBlock& block, const Sight<T>& sight) {
    for (int v = 0; v < sight.vectors; ++v) {
      const int64_t lane = v * kLanes<T>;
      add_products(weights_ + lane, gradients_ + lane, block.width, sight.seen[v], mean_ + lane);
    }
  }

  void sum_means(const Problem<T>& problem, const RowBlock& block) {
    const int64_t keys = logits_.keys();
    for (int64_t first = 0; first < keys; first += p_.blocking.keys) {
      add_means(block, weigh_keys(problem, block, first, std::min(p_.blocking.keys, keys - first)));
    }
  }

  void differentiate(const Problem<T>& problem, const RowBlock& block, int64_t first, int64_t count, bool fresh) {
    const Sight<T> sight = weigh_keys(problem, block, first, count);
    if (grad_value_.wanted()) {
      sums_over_rows(sight, block, weights_, grad_out_rows_, p_.value_dim, !fresh, grad_value_.rows(first),
                     grad_value_.stride());
    }
    if (!wants_logits_) return;
    if (!knows_means_ && in_one_block()) add_means(block, sight);
    for (int v = 0; v < sight.vectors; ++v) {
      const int64_t lane = v * kLanes<T>;
      logit_gradients(p_.activation, weights_ + lane, gradients_ + lane, block.width, sight.seen[v], mean_ + lane);
    }
    if (o_.grad_logits != nullptr) {
      const int64_t row = problem.first_row(p_) + block.first;
      write_table(block, sight, gradients_, o_.grad_logits, row * p_.keys + first, p_.keys, Storage::native);
    }
    if (grad_key_.wanted()) {
      sums_over_rows(sight, block, gradients_, logits_.query_rows, p_.dim, !fresh, grad_key_.rows(first),
                     grad_key_.stride());
    }
    if (o_.grad_query.data != nullptr) keys_.add(problem, sight, gradients_, first > 0, query_sums_);
  }

  void add_grad_weights(const Problem<T>& problem, const RowBlock& block, const Sight<T>& sight) {
    const Operand<const void*>& from = o_.grad_weights;
    for_rows(p_, block, [&](int64_t r, int64_t g, int64_t i) MHICL_INLINE_LAMBDA {
      const int64_t row = row_offset(p_, problem, from, g, i) + sight.first * from.column;
      for (int64_t l = 0; l < sight.seen[r / kLanes<T>]; ++l) {
        gradients_[l * block.width + r] += read<T>(from.data, row + l * from.column, p_.storage);
      }
    });
  }

  void write_query(const Problem<T>& problem, const RowBlock& block) {
    const int64_t stride = padded_to_vectors<T>(p_.dim);
    transpose(query_sums_, block.width, stride, block.count, query_rows_, stride);
    const auto factor = [&](int64_t) MHICL_INLINE_LAMBDA { return p_.scale; };
    scatter_rows(p_, problem, block, query_rows_, p_.dim, factor, o_.grad_query);
  }

  const AttentionBackwardParams<T>& o_;
  const AttentionParams<T>& p_;
  const bool wants_logits_, knows_means_;
  Workspace<T> workspace_;
  Logits<T> logits_;
  KeySums<T> keys_;
  KeyReader<T> values_;
  KeyGradient<T> grad_key_, grad_value_;
  T *weights_, *gradients_;
  T *grad_out_rows_, *grad_out_columns_;
  T *query_sums_, *query_rows_;
  alignas(64) T shift_[kRows], inverse_[kRows], mean_[kRows];
};
