// What the typed parts of the runtime's stand-in hand on.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

namespace emulation __attribute__((visibility("hidden"))) {

struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  std::string arguments;  // their bytes, each at a multiple of its alignment
  std::function<void()> body;  // what one thread runs

  void add_argument(const void* value, size_t bytes, size_t alignment) {
    arguments.resize((arguments.size() + alignment - 1) / alignment * alignment);
    arguments.append(static_cast<const char*>(value), bytes);
  }
};

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t submit(cudaStream_t stream, Launch launch);

struct Limits {
  int multiprocessors, shared_per_block;
};
// The limits of the device that is current. Every pair that a test asks for is a device of its own.
Limits current_limits();

// The names of the runtime's functions as they are called.
void log_call(const char* name);

}  // namespace emulation
