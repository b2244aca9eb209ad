#include "block_memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace emulation {
namespace {

constexpr int kPoison = 0xff;  // every float and double of such bytes is NaN, every signed integer −1

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

// A thread's copies that have not arrived, in order; closed[g] of them lie in its groups 0 … g.
struct Copies {
  std::vector<Copy> waiting;
  std::vector<size_t> closed;
};

std::vector<Copies> copies;
char* begin;
size_t size;

#if defined(__SANITIZE_ADDRESS__)

// Alone on the heap, where the sanitizer sees each byte beyond the end.
std::unique_ptr<char, decltype(&std::free)> memory(nullptr, std::free);

void allocate() {
  memory.reset(static_cast<char*>(std::malloc(size)));
  begin = memory.get();
}

std::string damage() { return {}; }

#else

constexpr size_t kGuard = 1024;
constexpr int kGuardByte = 0xa5;
std::vector<char> memory;

void allocate() {
  memory.resize(size + 2 * kGuard + 16);
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory.data()) + kGuard;
  begin = reinterpret_cast<char*>((first + 15) / 16 * 16);
  std::memset(begin - kGuard, kGuardByte, kGuard);
  std::memset(begin + size, kGuardByte, kGuard);
}

std::string damage() {
  for (size_t i = 0; i < kGuard; ++i) {
    if (begin[-1 - ptrdiff_t(i)] != char(kGuardByte)) {
      return "wrote " + std::to_string(i + 1) + " bytes before its shared memory";
    }
    if (begin[size + i] != char(kGuardByte)) {
      return "wrote " + std::to_string(i) + " bytes past the end of its " + std::to_string(size) +
             " bytes of shared memory";
    }
  }
  return {};
}

#endif

}  // namespace

void start_block_memory(size_t bytes, int threads) {
  size = bytes;
  allocate();
  std::memset(begin, kPoison, size);
  if (copies.size() < size_t(threads)) copies.resize(threads);
  for (Copies& own : copies) own.waiting.clear(), own.closed.clear();
}

std::string end_block_memory() { return damage(); }

char* shared_begin() { return begin; }

void start_copy(void* shared, const void* global, int bytes, Line line) {
  const uintptr_t to = reinterpret_cast<uintptr_t>(shared), from = reinterpret_cast<uintptr_t>(global);
  if (to % bytes != 0 || from % bytes != 0) {
    fault("misaligned asynchronous copy of " + std::to_string(bytes) + " bytes (" + (to % bytes != 0 ? "to" : "from") +
              " an address that is " + std::to_string((to % bytes != 0 ? to : from) % bytes) + " past a multiple)",
          line);
  }
  char* const target = static_cast<char*>(shared);
  if (target < begin || target + bytes > begin + size) fault("asynchronous copy to outside of shared memory", line);
  char probe[16];
  std::memcpy(probe, global, bytes);  // so that what may not be read is found here and not where it is waited for
  asm volatile("" : : "r"(probe) : "memory");
  std::memset(shared, kPoison, bytes);
  copies[running_thread()].waiting.push_back({shared, global, bytes});
}

void close_copies() {
  Copies& own = copies[running_thread()];
  own.closed.push_back(own.waiting.size());
}

void finish_copies(int pending_groups) {
  Copies& own = copies[running_thread()];
  if (own.closed.size() <= size_t(pending_groups)) return;
  const size_t groups = own.closed.size() - pending_groups, count = own.closed[groups - 1];
  for (size_t i = 0; i < count; ++i) std::memcpy(own.waiting[i].to, own.waiting[i].from, own.waiting[i].bytes);
  own.waiting.erase(own.waiting.begin(), own.waiting.begin() + count);
  own.closed.erase(own.closed.begin(), own.closed.begin() + groups);
  for (size_t& end : own.closed) end -= count;
}

}  // namespace emulation
