#include "fibers.h"

#include <sys/mman.h>

#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace emulation {
namespace {

constexpr size_t kPage = 4096;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;  // frames are larger there
// A fiber that has done its work never returns from its first functions, whose frames stay marked.
void forget_frames(const char* from, size_t bytes) { __asan_unpoison_memory_region(from, bytes); }
#else
constexpr size_t kStackBytes = 64 << 10;
void forget_frames(const char*, size_t) {}
#endif
constexpr size_t kFirstFrames = 4096;

std::vector<char*>& stacks() {
  static std::vector<char*> all;
  return all;
}

char* stack_bottom(int number) {
  while (stacks().size() <= size_t(number)) {
    void* memory = mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) throw std::bad_alloc();
    stacks().push_back(static_cast<char*>(memory) + kPage);
  }
  char* const bottom = stacks()[number];
  forget_frames(bottom + kStackBytes - kFirstFrames, kFirstFrames);
  return bottom;
}

}  // namespace

void prepare(Fiber& fiber, int stack, void (*entry)()) {
  char* const bottom = stack_bottom(stack);
  fiber.bottom = bottom;
  fiber.size = kStackBytes;
#if defined(__x86_64__)
  // At a function's first instruction the stack pointer is 8 below a multiple of 16, where it would return to.
  void** const top = reinterpret_cast<void**>(bottom + kStackBytes) - 3;
  *top = nullptr;  // where a backtrace ends
  fiber.stack_pointer = top;
  fiber.frame_pointer = nullptr;
  fiber.instruction = reinterpret_cast<const void*>(entry);
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = bottom;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

void fiber_started([[maybe_unused]] Fiber& host) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (host.bottom == nullptr) host.bottom = bottom, host.size = size;  // the first fiber was started by the host
#endif
}

void clear_stacks() {
  for (const char* bottom : stacks()) forget_frames(bottom, kStackBytes);
}

}  // namespace emulation
