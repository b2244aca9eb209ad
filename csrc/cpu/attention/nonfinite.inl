// Sums over keys where a hidden key may hold NaN or infinity: its weight is zero, but zero times NaN is NaN. So such
// elements are taken out of the product, and brought back for the rows that do see them.

template <class T>
bool all_finite(const AttentionParams<T>& p, const Problem<T>& problem, const Operand<const void*>& keys,
                int64_t columns) {
  constexpr int W = kLanes<T>;
  const int64_t base = problem.batch * keys.batch + problem.head * keys.head;
  const Head<T> tail(columns % W);
  Vec<T> zero{};  // stays so while everything is finite
  for (int64_t l = 0; l < problem.keys; ++l) {
    const int64_t at = base + l * keys.row;
    if (KeyReader<T>::in_place(p, keys)) {
      const T* row = static_cast<const T*>(keys.data) + at;
      int64_t e = 0;
      for (; e + W <= columns; e += W) zero = fma<T>(load(row + e), Vec<T>{}, zero);
      if (e < columns) zero = fma<T>(load(row + e, tail), Vec<T>{}, zero);
    } else {
      for (int64_t e = 0; e < columns; ++e) {
        zero[0] += T(0) * read<T>(keys.data, at + e * keys.column, p.storage);
      }
    }
  }
  bool finite = true;
  for (int i = 0; i < W; ++i) finite = finite && zero[i] == T(0);
  return finite;
}

// sums (dim × rows) += keysᵀ · table, for the keys of one problem after another.
template <class T>
class KeySums {
 public:
  KeySums(const AttentionParams<T>& p, const Operand<const void*>& keys, int64_t dim, Workspace<T>& workspace)
      : p_(p), keys_(keys), dim_(dim), reader_(p, keys, dim, key_block(p), workspace), clean_(nullptr) {
    if (may_hide(p)) clean_ = workspace.take(key_block(p) * padded_to_vectors<T>(dim));
  }

  static int64_t size(const AttentionParams<T>& p, const Operand<const void*>& keys, int64_t dim) {
    return KeyReader<T>::size(p, keys, dim, key_block(p)) +
           (may_hide(p) ? Workspace<T>::padded(key_block(p) * padded_to_vectors<T>(dim)) : 0);
  }

  // Whether the sight of this problem's rows must be known key by key.
  bool start(const Problem<T>& problem) {
    finite_ = !may_hide(p_) || all_finite(p_, problem, keys_, dim_);
    return !finite_;
  }

  KeyRows<T> rows(const Problem<T>& problem, int64_t first, int64_t count) { return reader_(problem, first, count); }

  void add(const Problem<T>& problem, const Sight<T>& sight, const T* table, bool accumulate, T* sums,
           const Ahead& ahead = {}) {
    const KeyRows<T> keys = reader_(problem, sight.first, sight.count);
    if (finite_) {
      sums_over_keys(sight, keys, dim_, table, accumulate, sums, ahead);
      return;
    }
    const int64_t stride = padded_to_vectors<T>(dim_);
    for (int64_t l = 0; l < sight.count; ++l) {
      for (int64_t e = 0; e < dim_; ++e) {
        const T x = keys.data[l * keys.stride + e];
        clean_[l * stride + e] = std::isfinite(x) ? x : T(0);
      }
    }
    sums_over_keys(sight, KeyRows<T>{clean_, stride}, dim_, table, accumulate, sums, ahead);
    bring_back(sight, keys, table, sums);
  }

 private:
  void bring_back(const Sight<T>& sight, const KeyRows<T>& keys, const T* table, T* sums) const {
    const int64_t width = sight.vectors * kLanes<T>;
    for (int64_t l = 0; l < sight.count; ++l) {
      for (int64_t e = 0; e < dim_; ++e) {
        const T x = keys.data[l * keys.stride + e];
        if (std::isfinite(x)) continue;
        for (int64_t r = 0; r < width; ++r) {
          const bool seen = sight.bias[l * width + r] != -std::numeric_limits<T>::infinity();
          if (seen) sums[e * width + r] += table[l * width + r] * x;
        }
      }
    }
  }

  const AttentionParams<T>& p_;
  const Operand<const void*>& keys_;
  const int64_t dim_;
  KeyReader<T> reader_;
  T* clean_;
  bool finite_ = true;
};
