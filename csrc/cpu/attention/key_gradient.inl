// The gradient of a problem's keys or values, which is a sum over blocks of rows: summed where it belongs, or in scratch
// memory if what is stored is narrower than the sum.
template <class T>
class KeyGradient {
 public:
  KeyGradient(const AttentionParams<T>& p, const Operand<void*>& to, int64_t columns, Workspace<T>& workspace)
      : p_(p), to_(to), columns_(columns), scratch_(nullptr) {
    if (wanted() && !in_place(p)) scratch_ = workspace.take(p.keys * columns);
  }

  static int64_t size(const AttentionParams<T>& p, const Operand<void*>& to, int64_t columns) {
    return to.data == nullptr || in_place(p) ? 0 : Workspace<T>::padded(p.keys * columns);
  }

  bool wanted() const { return to_.data != nullptr; }

  void start(const Problem<T>& problem) {
    base_ = problem.batch * to_.batch + problem.head * to_.head;
    sums_ = in_place(p_) ? static_cast<T*>(to_.data) + base_ : scratch_;
  }

  T* rows(int64_t first) const { return sums_ + first * stride(); }
  int64_t stride() const { return in_place(p_) ? to_.row : columns_; }

  void zero(int64_t first, int64_t last) const {
    if (!wanted()) return;
    for (int64_t l = first; l < last; ++l) std::fill_n(rows(l), columns_, T(0));
  }

  // A row with NaN or infinity gives every key zero times that. Keys that a mask hides from all rows must not show it.
  void forget_unseen(const Problem<T>& problem, int64_t first, int64_t last) const {
    if (!wanted() || p_.mask_kind == MaskKind::none) return;
    for (int64_t l = first; l < last; ++l) {
      T* row = rows(l);
      T zero = 0;  // stays so while everything is finite
      for (int64_t e = 0; e < columns_; ++e) zero += T(0) * row[e];
      if (zero != T(0) && !key_is_seen(p_, problem, l)) std::fill_n(row, columns_, T(0));
    }
  }

  // After the last sum.
  void write(int64_t first, int64_t last) const {
    if (!wanted() || in_place(p_)) return;
    for (int64_t l = first; l < last; ++l) {
      write_row(rows(l), columns_, T(1), to_.data, base_ + l * to_.row, p_.storage);
    }
  }

 private:
  static bool in_place(const AttentionParams<T>& p) { return p.storage == Storage::native; }

  const AttentionParams<T>& p_;
  const Operand<void*>& to_;
  const int64_t columns_;
  T* scratch_;
  T* sums_ = nullptr;
  int64_t base_ = 0;
};
