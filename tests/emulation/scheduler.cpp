#include "scheduler.h"

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "block_memory.h"
#include "fibers.h"
#include "indices.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {
namespace {

constexpr int kLanes = 32;
constexpr int kMostThreads = 1024;
constexpr int kMostWarps = kMostThreads / kLanes;

struct Thread {
  Fiber fiber;
  uint3 index;
};

struct Pending {
  Meeting meeting;
  unsigned arrived;
};

struct Warp {
  unsigned present;      // lanes that the block has
  unsigned ready;        // lanes that could run
  unsigned at_barrier;
  unsigned exited;
  int pending_count;
  Pending pending[kLanes];
  Exchange exchanges[kLanes];
};

struct Block {
  int threads;
  int at_barrier;
  int exited;
  unsigned ready_warps;
  Line barrier;  // the line at which threads wait, while some do
  Warp warps[kMostWarps];
};

Block block;
Thread threads[kMostThreads];
Fiber host;
int running;  // the running thread's number
const std::function<void()>* thread_body;
std::string kernel_name;
std::string failure;
uint64_t random_state = 1;

uint64_t draw() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * 0x2545f4914f6cdd1dull;
}

// One of the bits set, by a rotation that 5 random bits give.
int draw_bit(unsigned bits, unsigned random) {
  const unsigned by = random % 32, rotated = bits >> by | bits << (-by % 32);
  return (__builtin_ctz(rotated) + by) % 32;
}

Warp& running_warp() { return block.warps[running / kLanes]; }
unsigned running_bit() { return 1u << running % kLanes; }

void make_ready(int warp, unsigned lanes) {
  block.warps[warp].ready |= lanes;
  block.ready_warps |= 1u << warp;
}

std::string text(const uint3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

std::string text(Line line) {
  const std::string file = line.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(line.number);
}

std::string text(unsigned mask) {
  char buffer[16];
  std::snprintf(buffer, sizeof buffer, "0x%08x", mask);
  return buffer;
}

std::string text(const Meeting& meeting) {
  return std::string(meeting.name) + " at " + text(meeting.line) + " with mask " + text(meeting.lanes);
}

[[noreturn]] void fail(int thread, const std::string& what) {
  failure = "kernel " + kernel_name + ", block " + text(blockIdx) + ", thread " + text(threads[thread].index) + ": ";
  failure += what;
  switch_fiber(threads[running].fiber, host);
  __builtin_unreachable();
}

// Why lane `lane` does not come to a meeting of its warp.
std::string whereabouts(const Warp& warp, int lane) {
  const unsigned bit = 1u << lane;
  const std::string who = "lane " + std::to_string(lane);
  if (!(warp.present & bit)) return who + ", which the warp does not have";
  if (warp.exited & bit) return who + ", which has exited";
  if (warp.at_barrier & bit) return who + ", which waits at the block's barrier at " + text(block.barrier);
  for (int i = 0; i < warp.pending_count; ++i) {
    if (warp.pending[i].arrived & bit) return who + ", which is at " + text(warp.pending[i].meeting);
  }
  return who;
}

// No thread can go on and some have not exited.
[[noreturn]] void fail_of_deadlock() {
  for (int w = 0; w < kMostWarps; ++w) {
    const Warp& warp = block.warps[w];
    if (warp.pending_count == 0) continue;
    const Pending& pending = warp.pending[0];
    const int missing = __builtin_ctz(pending.meeting.lanes & ~pending.arrived);
    fail(w * kLanes + __builtin_ctz(pending.arrived),
         "waits at " + text(pending.meeting) + " for " + whereabouts(warp, missing));
  }
  for (int w = 0;; ++w) {
    const Warp& warp = block.warps[w];
    if (warp.at_barrier == 0) continue;
    fail(w * kLanes + __builtin_ctz(warp.at_barrier),
         "barrier not reached by all: " + std::to_string(block.at_barrier) + " threads wait at " + text(block.barrier) +
             ", " + std::to_string(block.exited) + " have exited");
  }
}

// Hands over to a thread that is ready, mostly of the same warp; the one that calls goes on if it is drawn itself.
inline __attribute__((always_inline)) void yield() {
  if (block.ready_warps == 0) {
    if (block.exited < block.threads) fail_of_deadlock();
    switch_fiber(threads[running].fiber, host);
  }
  const unsigned random = draw() >> 32;
  int warp = running / kLanes;
  if (block.warps[warp].ready == 0 || random % 16 == 0) warp = draw_bit(block.ready_warps, random >> 4);
  const int lane = draw_bit(block.warps[warp].ready, random >> 9);
  block.warps[warp].ready &= ~(1u << lane);
  if (block.warps[warp].ready == 0) block.ready_warps &= ~(1u << warp);
  const int next = warp * kLanes + lane, previous = running;
  if (next == previous) return;
  running = next;
  threadIdx = threads[next].index;
  switch_fiber(threads[previous].fiber, threads[next].fiber);
}

void thread_main() {
  fiber_started(host);
  (*thread_body)();
  ++block.exited;
  running_warp().exited |= running_bit();
  yield();
  __builtin_unreachable();
}

void start_block() {
  block.threads = blockDim.x * blockDim.y * blockDim.z;
  block.at_barrier = block.exited = 0;
  block.ready_warps = 0;
  for (int w = 0; w < kMostWarps; ++w) {
    Warp& warp = block.warps[w];
    const int lanes = std::min(std::max(block.threads - w * kLanes, 0), kLanes);
    warp.present = lanes == kLanes ? ~0u : (1u << lanes) - 1;
    warp.ready = warp.at_barrier = warp.exited = 0;
    warp.pending_count = 0;
    if (lanes > 0) make_ready(w, warp.present);
  }
  for (int t = 0; t < block.threads; ++t) prepare(threads[t].fiber, t, thread_main);
}

void run_block(size_t shared_bytes) {
  start_block();
  start_block_memory(shared_bytes, block.threads);
  // The host stands in for the thread that is drawn first.
  const int warp = draw_bit(block.ready_warps, draw() >> 32);
  running = warp * kLanes + draw_bit(block.warps[warp].ready, draw() >> 32);
  running_warp().ready &= ~running_bit();
  if (running_warp().ready == 0) block.ready_warps &= ~(1u << warp);
  threadIdx = threads[running].index;
  switch_fiber(host, threads[running].fiber);
  if (failure.empty()) {
    const std::string damage = end_block_memory();
    if (!damage.empty()) failure = "kernel " + kernel_name + ", block " + text(blockIdx) + ": " + damage;
  }
  if (failure.empty()) return;
  clear_stacks();
  throw std::runtime_error(std::exchange(failure, {}));
}

}  // namespace

void fault_of_lane(int lane, const std::string& what, Line line) {
  fail(running / kLanes * kLanes + lane, what + " at " + text(line));
}

void fault(const std::string& what, Line line) { fault_of_lane(running % kLanes, what, line); }

int running_thread() { return running; }

void wait_for_block(Line line) {
  if (block.at_barrier == 0) block.barrier = line;
  if (!(line == block.barrier)) {
    fault("barrier not reached by all: others wait at the barrier at " + text(block.barrier) + ", this one", line);
  }
  running_warp().at_barrier |= running_bit();
  if (++block.at_barrier == block.threads) {
    block.at_barrier = 0;
    for (int w = 0; w * kLanes < block.threads; ++w) {
      block.warps[w].at_barrier = 0;
      make_ready(w, block.warps[w].present);
    }
  }
  yield();
}

const Exchange* join(const Meeting& meeting, Exchange exchange) {
  Warp& warp = running_warp();
  const unsigned bit = running_bit();
  if (!(meeting.lanes & bit)) fault("calls " + text(meeting) + ", which does not name it,", meeting.line);
  warp.exchanges[running % kLanes] = exchange;
  int i = 0;
  for (; i < warp.pending_count; ++i) {
    const Meeting& other = warp.pending[i].meeting;
    if (other.lanes == meeting.lanes && other.line == meeting.line && other.detail == meeting.detail &&
        other.name == meeting.name) {
      break;
    }
  }
  if (i == warp.pending_count) warp.pending[warp.pending_count++] = {meeting, 0};
  warp.pending[i].arrived |= bit;
  if (warp.pending[i].arrived == meeting.lanes) {
    warp.pending[i] = warp.pending[--warp.pending_count];
    return warp.exchanges;
  }
  yield();
  return nullptr;
}

void end(const Meeting& meeting) {
  make_ready(running / kLanes, meeting.lanes);
  yield();
}

void seed_schedule(uint64_t seed) {
  random_state = (seed + 1) * 0x9e3779b97f4a7c15ull | 1;
  for (int i = 0; i < 8; ++i) draw();
}

void run_grid(const std::string& kernel, dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  host.bottom = nullptr;
  kernel_name = kernel;
  thread_body = &body;
  gridDim = grid;
  blockDim = size;
  int thread = 0;
  for (unsigned z = 0; z < size.z; ++z) {
    for (unsigned y = 0; y < size.y; ++y) {
      for (unsigned x = 0; x < size.x; ++x) threads[thread++].index = {x, y, z};
    }
  }
  // Block i of the run is number (first + step · i) mod blocks, with a step that shares no factor with their number.
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  uint64_t number = draw() % blocks, step = draw() % blocks;
  while (std::gcd(step, blocks) != 1) step = (step + 1) % blocks;
  for (uint64_t i = 0; i < blocks; ++i, number = (number + step) % blocks) {
    blockIdx = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
    run_block(shared_bytes);
  }
}

}  // namespace emulation
