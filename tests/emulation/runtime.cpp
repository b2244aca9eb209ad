// The device itself: its limits, launches, and the memory that the runtime hands out.
#include "runtime.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>

#include "device_memory.h"
#include "recorder.h"
#include "scheduler.h"
#include "streams.h"

namespace emulation {
namespace {

constexpr size_t kSharedWithoutAsking = 48 << 10;
constexpr int kMostShared = 227 << 10;

std::vector<Limits> devices = {{132, kMostShared}};
int current_device = 0;
std::vector<const char*> calls;
std::map<const void*, size_t> shared_granted;

std::string readable(const std::string& mangled) {
  int status = 0;
  char* text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  const std::string name = status == 0 ? text : mangled;
  std::free(text);
  return name;
}

cudaError_t check(const Launch& launch) {
  const dim3 grid = launch.grid, block = launch.block;
  for (const dim3& size : {grid, block}) {
    if (size.x == 0 || size.y == 0 || size.z == 0) return cudaErrorInvalidConfiguration;
  }
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || uint64_t{block.x} * block.y * block.z > 1024) {
    return cudaErrorInvalidConfiguration;
  }
  const auto granted = shared_granted.find(launch.kernel);
  const size_t most = granted == shared_granted.end() ? kSharedWithoutAsking
                                                      : std::max(kSharedWithoutAsking, granted->second);
  if (launch.shared_bytes > most || launch.shared_bytes > size_t(current_limits().shared_per_block)) {
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

void run(const Launch& launch) {
  Dl_info symbol = {};
  const bool named = dladdr(launch.kernel, &symbol) != 0 && symbol.dli_saddr == launch.kernel;
  const std::string name = named ? symbol.dli_sname : "(without external linkage)";
  const Recording recording(name, launch);
  run_grid(readable(name), launch.grid, launch.block, launch.shared_bytes, launch.body);
  const std::string damaged = damaged_allocation();
  if (!damaged.empty()) throw std::runtime_error("kernel " + readable(name) + " wrote " + damaged);
}

}  // namespace

Limits current_limits() { return devices[current_device]; }

void log_call(const char* name) { calls.push_back(name); }

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  log_call("cudaFuncSetAttribute");
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > current_limits().shared_per_block) return returned(cudaErrorInvalidValue);
  shared_granted[kernel] = size_t(value);
  return cudaSuccess;
}

cudaError_t submit(cudaStream_t stream, Launch launch) {
  log_call("cudaLaunchKernelEx");
  if (const cudaError_t error = check(launch); error != cudaSuccess) return returned(error);
  return enqueue(stream, [launch = std::move(launch)] { run(launch); });
}

// For Python, by ctypes.
extern "C" {

void emulation_seed(uint64_t seed) { seed_schedule(seed); }

// Makes a device with these limits current.
void emulation_limits(int multiprocessors, int shared_per_block) {
  for (current_device = 0; size_t(current_device) < devices.size(); ++current_device) {
    const Limits& limits = devices[current_device];
    if (limits.multiprocessors == multiprocessors && limits.shared_per_block == shared_per_block) return;
  }
  devices.push_back({multiprocessors, shared_per_block});
}

// The calls since this was last asked, one a line; valid until it is asked again.
const char* emulation_calls() {
  static std::string text;
  text.clear();
  for (const char* call : calls) text.append(call).push_back('\n');
  calls.clear();
  return text.c_str();
}

}  // extern "C"
}  // namespace emulation

using emulation::log_call;
using emulation::refuse_while_capturing;
using emulation::returned;

cudaError_t cudaGetDevice(int* device) {
  *device = emulation::current_device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || size_t(device) >= emulation::devices.size()) return returned(cudaErrorInvalidValue);
  const emulation::Limits limits = emulation::devices[device];
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMultiProcessorCount: *value = limits.multiprocessors; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = limits.shared_per_block + 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = limits.shared_per_block; break;
    default: return returned(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  log_call("cudaMalloc");
  if (const cudaError_t error = refuse_while_capturing(); error != cudaSuccess) return error;
  *pointer = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*pointer == nullptr) return returned(cudaErrorMemoryAllocation);
  std::memset(*pointer, 0xff, bytes);
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  log_call("cudaFree");
  if (const cudaError_t error = refuse_while_capturing(); error != cudaSuccess) return error;
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  log_call("cudaHostAlloc");
  if (const cudaError_t error = refuse_while_capturing(); error != cudaSuccess) return error;
  *pointer = std::malloc(bytes);
  return *pointer == nullptr ? returned(cudaErrorMemoryAllocation) : cudaSuccess;
}
cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, cudaHostAllocDefault); }

cudaError_t cudaFreeHost(void* pointer) {
  log_call("cudaFreeHost");
  if (const cudaError_t error = refuse_while_capturing(); error != cudaSuccess) return error;
  std::free(pointer);
  return cudaSuccess;
}
