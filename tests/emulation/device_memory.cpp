#include "device_memory.h"

#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "recorder.h"

namespace emulation {
namespace {

constexpr size_t kAlignment = 256;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kGuard = 0;  // the sanitizer has its own
#else
constexpr size_t kGuard = 256;
#endif
constexpr int kPoison = 0xff;     // as floating-point numbers NaN
constexpr int kGuardByte = 0xa5;

std::mutex mutex;
std::map<char*, size_t> allocations;  // where each begins, and its bytes

void release(void* pointer) {
  char* const begin = static_cast<char*>(pointer);
  {
    const std::lock_guard lock(mutex);
    allocations.erase(begin);
  }
  std::free(begin - kGuard);
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::Device(c10::kCPU)};
    void* memory = nullptr;
    TORCH_CHECK(posix_memalign(&memory, kAlignment, bytes + 2 * kGuard) == 0, "no memory for ", bytes, " bytes");
    char* const begin = static_cast<char*>(memory) + kGuard;
    std::memset(begin - kGuard, kGuardByte, kGuard);
    std::memset(begin, kPoison, bytes);
    std::memset(begin + bytes, kGuardByte, kGuard);
    const std::lock_guard lock(mutex);
    allocations[begin] = bytes;
    return {begin, begin, release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

DeviceAllocator allocator;
c10::Allocator* usual_allocator = nullptr;
int depth = 0;

}  // namespace

void enter_device() {
  if (depth++ > 0 || is_recording()) return;
  usual_allocator = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&allocator);
}

void leave_device() {
  if (--depth > 0 || usual_allocator == nullptr) return;
  c10::SetCPUAllocator(usual_allocator);
  usual_allocator = nullptr;
}

std::string damaged_allocation() {
  const std::lock_guard lock(mutex);
  for (const auto& [begin, bytes] : allocations) {
    for (size_t i = 0; i < kGuard; ++i) {
      const bool after = begin[bytes + i] != char(kGuardByte), before = *(begin - 1 - i) != char(kGuardByte);
      if (!after && !before) continue;
      return (after ? "past the end of" : "before") + (" an allocation of " + std::to_string(bytes)) + " bytes";
    }
  }
  return {};
}

}  // namespace emulation
