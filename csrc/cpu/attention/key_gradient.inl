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
