// Scratch memory of one call on one thread.

// One allocation, zero at first, dealt out in cache-line pieces. Each piece is followed by slack of a vector at least,
// since narrow tables are read and written in whole vectors.
template <class T>
class Workspace {
 public:
  explicit Workspace(int64_t elements) : begin_(allocate(elements)), next_(begin_) {
    std::memset(begin_, 0, size_t(elements) * sizeof(T));
  }
  ~Workspace() { ::operator delete(begin_, kAlignment); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  static int64_t padded(int64_t elements) {
    constexpr int64_t line = 64 / int64_t(sizeof(T));
    return (elements + 2 * line - 1) / line * line + line;
  }
  T* take(int64_t elements) {
    T* piece = next_;
    next_ += padded(elements);
    return piece;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static T* allocate(int64_t elements) {
    return static_cast<T*>(::operator new(size_t(elements) * sizeof(T), kAlignment));
  }
  T* begin_;
  T* next_;
};
