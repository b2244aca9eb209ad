// General attention, forward: for each block of rows, logits, exponentials and sums over values, a block of keys at a
// time, with the maximum over the keys so far.

template <class T>
class AttentionForward {
 public:
  explicit AttentionForward(const AttentionForwardParams<T>& params)
      : o_(params),
        p_(params.attention),
        workspace_(size()),
        logits_(p_, workspace_),
        keys_(p_, p_.key, p_.dim, key_block(p_), workspace_),
        values_(p_, p_.value, p_.value_dim, workspace_) {
    table_ = workspace_.take(key_block(p_) * p_.blocking.rows);
    sums_ = workspace_.take(padded_to_vectors<T>(p_.value_dim) * p_.blocking.rows);
    out_rows_ = workspace_.take(padded_to_vectors<T>(p_.value_dim) * p_.blocking.rows);
  }

  void run(const AttentionRange& range) {
    for (int64_t i = range.first_problem; i < range.last_problem; ++i) {
      const Problem<T> problem(p_, i);
      const bool key_by_key = values_.start(problem);
      for (int64_t b = range.first_rows; b < range.last_rows; ++b) {
        const RowBlock block = row_block(p_, b);
        logits_.start(problem, block, key_by_key);
        attend(problem, block);
        finish(problem, block);
        if (o_.weights != nullptr) write_weights(problem, block);
      }
    }
  }

 private:
  static constexpr int64_t kRows = kBlockVectors * kLanes<T>;

  int64_t size() const {
    const auto padded = Workspace<T>::padded;
    return Logits<T>::size(p_) + KeyReader<T>::size(p_, p_.key, p_.dim, key_block(p_)) +
           KeySums<T>::size(p_, p_.value, p_.value_dim) + padded(key_block(p_) * p_.blocking.rows) +
           2 * padded(padded_to_vectors<T>(p_.value_dim) * p_.blocking.rows);
  }

  void attend(const Problem<T>& problem, const RowBlock& block) {
    const int64_t keys = logits_.keys();
    if (keys == 0) {
      std::fill_n(maxima_, kRows, -std::numeric_limits<T>::infinity());
      std::fill_n(totals_, kRows, T(0));
      std::fill_n(sums_, p_.value_dim * block.width, T(0));
    }
    for (int64_t first = 0; first < keys; first += p_.blocking.keys) {
      const int64_t count = std::min(p_.blocking.keys, keys - first);
      const Sight<T> sight = logits_(keys_(problem, first, count), first, count, table_);
      for (int v = 0; v < sight.vectors; ++v) activate(block, sight, v);
      values_.add(problem, sight, table_, first > 0, sums_,
                  NextProblem<T>(p_, problem, block).keys(p_.value, p_.value_dim));
    }
  }

  void activate(const RowBlock& block, const Sight<T>& sight, int v) {
    const int64_t lane = v * kLanes<T>;
    if (p_.activation == Activation::softmax) {
      exponentials(table_ + lane, block.width, sight.seen[v], sight.first == 0, maxima_ + lane, totals_ + lane,
                   sums_ + lane, p_.value_dim);
    } else if (p_.activation == Activation::relu) {
      rectify(table_ + lane, block.width, sight.seen[v]);
    }
  }

  void finish(const Problem<T>& problem, const RowBlock& block) {
    const bool softmax = p_.activation == Activation::softmax;
    const int64_t stride = padded_to_vectors<T>(p_.value_dim), row = problem.first_row(p_) + block.first;
    transpose(sums_, block.width, stride, block.count, out_rows_, stride);
    const auto factor = [&](int64_t r) MHICL_INLINE_LAMBDA {
      return !softmax ? T(1) : totals_[r] == T(0) ? T(0) : T(1) / totals_[r];
    };
    scatter_rows(p_, problem, block, out_rows_, p_.value_dim, factor, o_.out);
    for (int64_t r = 0; r < block.count; ++r) {
      if (softmax && o_.maxima != nullptr) {
        o_.maxima[row + r] = maxima_[r];
        o_.sums[row + r] = totals_[r];
      }
      if (softmax && o_.lse != nullptr) o_.lse[row + r] = maxima_[r] + std::log(totals_[r]);
    }
  }

  // Another pass over the keys, now that the maxima and totals are known.
  void write_weights(const Problem<T>& problem, const RowBlock& block) {
    const int64_t keys = logits_.keys(), row = problem.first_row(p_) + block.first;
    for (int64_t r = 0; r < block.width; ++r) {
      if (maxima_[r] == -std::numeric_limits<T>::infinity()) maxima_[r] = T(0);
      totals_[r] = totals_[r] == T(0) ? T(0) : T(1) / totals_[r];
    }
    for (int64_t first = 0; first < keys; first += p_.blocking.keys) {
      const int64_t count = std::min(p_.blocking.keys, keys - first);
      const Sight<T> sight = logits_(keys_(problem, first, count), first, count, table_);
      for (int v = 0; v < sight.vectors; ++v) {
        const int64_t lane = v * kLanes<T>;
        weigh(p_.activation, table_ + lane, block.width, sight.seen[v], maxima_ + lane, totals_ + lane);
      }
      write_table(block, sight, table_, o_.weights, row * p_.keys + first, p_.keys, p_.storage);
    }
    for (int64_t r = 0; r < block.count; ++r) {
      for (int64_t l = keys; l < p_.keys; ++l) write<T>(o_.weights, (row + r) * p_.keys + l, T(0), p_.storage);
    }
  }

  const AttentionForwardParams<T>& o_;
  const AttentionParams<T>& p_;
  Workspace<T> workspace_;
  Logits<T> logits_;
  KeyReader<T> keys_;
  KeySums<T> values_;
  T *table_, *sums_, *out_rows_;
  alignas(64) T maxima_[kRows], totals_[kRows];
};
