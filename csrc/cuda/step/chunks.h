// A step's prompts are worked on so many at a time, and a workspace dealt out to what is kept of them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mhicl::cuda {

// As many prompts as fill about 64 MiB with what memory keeps of them, so that most of it stays in the second-level cache.
inline int64_t prompts_at_a_time(int64_t n_prompts, int64_t bytes_each) {
  constexpr int64_t room = int64_t(64) << 20, least = 1024;
  return std::min(n_prompts, std::max(least, room / std::max<int64_t>(1, bytes_each)));
}

// Pieces of a workspace, each on a multiple of 256 bytes; of a null workspace only the size counts.
class Pieces {
 public:
  explicit Pieces(void* begin) : begin_(static_cast<char*>(begin)) {}
  template <class T>
  T* take(int64_t count) {
    const int64_t at = taken_;
    taken_ += (count * int64_t(sizeof(T)) + 255) / 256 * 256;
    return begin_ == nullptr ? nullptr : reinterpret_cast<T*>(begin_ + at);
  }
  int64_t bytes() const { return taken_; }

 private:
  char* begin_;
  int64_t taken_ = 0;
};

}  // namespace mhicl::cuda
