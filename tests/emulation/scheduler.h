// One block at a time: its threads as fibers, its barrier, and the meetings of a warp's lanes. Between two points where
// threads wait for each other, they run in an order drawn from a seed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cuda_runtime_api.h"

namespace emulation __attribute__((visibility("hidden"))) {

// A line of the source, taken where a function is called that has this as its last, defaulted, argument.
struct Line {
  const char* file;
  int number;
  static constexpr Line here(const char* file = __builtin_FILE(), int number = __builtin_LINE()) {
    return {file, number};
  }
  bool operator==(const Line& other) const { return number == other.number && file == other.file; }
};

// What the lanes of a warp do together. Lanes meet if everything here is the same.
struct Meeting {
  const char* name;
  unsigned lanes;  // the mask
  int detail;      // what else must agree
  Line line;
};

// Where a lane of the current warp keeps what it brings to a meeting and where it wants what it gets.
struct Exchange {
  const void* brought;
  void* wanted;
};

// Ends the launch with an error that names the running thread, or another lane of its warp.
[[noreturn]] void fault(const std::string& what, Line line);
[[noreturn]] void fault_of_lane(int lane, const std::string& what, Line line);

void wait_for_block(Line line);

// Joins a meeting. The lane that completes it gets the exchanges of all lanes, does the work for them and then ends it;
// the others get null, when it has ended.
const Exchange* join(const Meeting& meeting, Exchange exchange);
void end(const Meeting& meeting);

template <class Work>
void meet(const Meeting& meeting, Exchange exchange, Work work) {
  const Exchange* const lanes = join(meeting, exchange);
  if (lanes == nullptr) return;
  work(lanes);
  end(meeting);
}

// The running thread's number in its block.
int running_thread();

// Runs a grid's blocks one after another, in an order drawn from the seed. Throws std::runtime_error for a fault.
void run_grid(const std::string& kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

void seed_schedule(uint64_t seed);

}  // namespace emulation
