// While recording is on, PyTorch's CPU tensors come out of one arena, which stands for the device's memory: allocations
// start at multiples of 256 bytes, at least 256 bytes that belong to none lie between any two, and no place is used
// twice.
#include "recorder.h"

#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <cstring>
#include <deque>
#include <map>
#include <memory>

namespace emulation {
namespace {

constexpr size_t kSpacing = 256;

class Arena {
 public:
  explicit Arena(size_t bytes) : size_(bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(memory != MAP_FAILED, "no memory for an arena of ", bytes, " bytes");
    begin_ = static_cast<char*>(memory);
    std::memset(begin_, 0xff, kSpacing);
  }
  ~Arena() { munmap(begin_, size_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void* allocate(size_t bytes) {
    const size_t offset = used_, next = offset + (bytes + 2 * kSpacing - 1) / kSpacing * kSpacing;
    TORCH_CHECK(next <= size_, "the recorder's arena of ", size_, " bytes is full; give it more");
    std::memset(begin_ + offset, 0xff, next - offset);
    used_ = next;
    ranges[offset] = bytes;
    return begin_ + offset;
  }
  void free(void* pointer) { ranges.erase(static_cast<char*>(pointer) - begin_); }

  char* begin() const { return begin_; }
  std::string contents() const { return std::string(begin_, used_); }

  std::map<size_t, size_t> ranges;  // offset -> bytes of what is allocated now

 private:
  char* begin_;
  size_t size_, used_ = kSpacing;
};

struct Allocation {
  std::shared_ptr<Arena> arena;  // which lives as long as its last tensor
  void* pointer;
};

void free_allocation(void* context) {
  const std::unique_ptr<Allocation> allocation(static_cast<Allocation*>(context));
  allocation->arena->free(allocation->pointer);
}

std::shared_ptr<Arena> arena;  // while recording is on

struct ArenaAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::Device(c10::kCPU)};
    void* pointer = arena->allocate(bytes);
    return {pointer, new Allocation{arena, pointer}, free_allocation, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

ArenaAllocator allocator;
c10::Allocator* usual_allocator = nullptr;

struct Record {
  std::string description;  // JSON
  std::string arguments, before, after;
};

std::deque<Record> records;

std::string triple(const dim3& size) {
  return "[" + std::to_string(size.x) + "," + std::to_string(size.y) + "," + std::to_string(size.z) + "]";
}

std::string describe(const std::string& kernel, const Launch& launch) {
  std::string ranges;
  for (const auto& [offset, bytes] : arena->ranges) {
    if (!ranges.empty()) ranges += ",";
    ranges += "[" + std::to_string(offset) + "," + std::to_string(bytes) + "]";
  }
  return "{\"kernel\":\"" + kernel + "\",\"grid\":" + triple(launch.grid) + ",\"block\":" + triple(launch.block) +
         ",\"shared_bytes\":" + std::to_string(launch.shared_bytes) +
         ",\"base\":" + std::to_string(reinterpret_cast<uintptr_t>(arena->begin())) + ",\"ranges\":[" + ranges + "]}";
}

}  // namespace

bool is_recording() { return arena != nullptr; }

Recording::Recording(const std::string& kernel, const Launch& launch) {
  if (arena) records.push_back({describe(kernel, launch), launch.arguments, arena->contents(), {}});
}

Recording::~Recording() {
  if (arena) records.back().after = arena->contents();
}

// For Python, by ctypes. tests/emulated.py has the callers.
extern "C" {

int recording_start(size_t arena_bytes) {
  if (arena) return 1;
  records.clear();
  arena = std::make_shared<Arena>(arena_bytes);
  usual_allocator = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&allocator);
  return 0;
}

void recording_stop() {
  if (!arena) return;
  c10::SetCPUAllocator(usual_allocator);
  arena.reset();
}

size_t recording_count() { return records.size(); }
const char* recording_description(size_t launch) { return records[launch].description.c_str(); }

// A launch's bytes: 0 its arguments, 1 the arena before, 2 the arena after. Returns how many; `to` may be null.
size_t recording_bytes(size_t launch, int what, char* to) {
  const Record& record = records[launch];
  const std::string& bytes = what == 0 ? record.arguments : what == 1 ? record.before : record.after;
  if (to != nullptr) std::memcpy(to, bytes.data(), bytes.size());
  return bytes.size();
}

}  // extern "C"
}  // namespace emulation
