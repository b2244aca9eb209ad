// What the GPU's operators share on PyTorch's side: the device and stream to launch on, its limits, and errors.
#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../checks.h"
#include "../library.h"
#include "../storage.h"
#include "launchers.h"

namespace mhicl::cuda {

// The current device's limits; asked for once a device.
DeviceLimits device_limits();

// Where an operator on `tensor` works: its device is current while this lives, and work goes to the current stream.
class Place {
 public:
  explicit Place(const at::Tensor& tensor) : guard_(tensor.device()), stream_(c10::cuda::getCurrentCUDAStream()) {}
  cudaStream_t stream() const { return stream_; }

 private:
  c10::cuda::CUDAGuard guard_;
  c10::cuda::CUDAStream stream_;
};

// Whether float32 products may round their factors to TF32, for the matrix units: PyTorch's own switch.
inline bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

// Memory for a kernel's own use, of the caching allocator.
inline at::Tensor workspace(const at::Tensor& like, int64_t bytes) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

}  // namespace mhicl::cuda
