// Stand-in for c10's guards. There is one device, and tensors on the CPU are taken for its own; those made while a
// guard lives are watched.
#pragma once

#include <optional>

#include "CUDAStream.h"
#include "device_memory.h"

namespace c10::cuda {

class CUDAGuard {
 public:
  explicit CUDAGuard(c10::Device) { emulation::enter_device(); }
  explicit CUDAGuard(c10::DeviceIndex) { emulation::enter_device(); }
  ~CUDAGuard() { emulation::leave_device(); }
  CUDAGuard(const CUDAGuard&) = delete;
  CUDAGuard& operator=(const CUDAGuard&) = delete;
};

class OptionalCUDAGuard {
 public:
  explicit OptionalCUDAGuard(std::optional<c10::Device> = std::nullopt) { emulation::enter_device(); }
  ~OptionalCUDAGuard() { emulation::leave_device(); }
  OptionalCUDAGuard(const OptionalCUDAGuard&) = delete;
  OptionalCUDAGuard& operator=(const OptionalCUDAGuard&) = delete;
};

class CUDAStreamGuard {
 public:
  explicit CUDAStreamGuard(CUDAStream stream) : before_(getCurrentCUDAStream()) { setCurrentCUDAStream(stream); }
  ~CUDAStreamGuard() { setCurrentCUDAStream(before_); }
  CUDAStreamGuard(const CUDAStreamGuard&) = delete;
  CUDAStreamGuard& operator=(const CUDAStreamGuard&) = delete;

 private:
  CUDAStream before_;
};

}  // namespace c10::cuda
