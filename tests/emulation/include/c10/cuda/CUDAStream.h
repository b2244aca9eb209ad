// Stand-in for c10's streams.
#pragma once

#include <c10/core/Device.h>
#include <cuda_runtime_api.h>

#include "CUDAException.h"

namespace c10::cuda {

class CUDAStream {
 public:
  explicit CUDAStream(cudaStream_t stream) : stream_(stream) {}
  cudaStream_t stream() const { return stream_; }
  operator cudaStream_t() const { return stream_; }
  c10::DeviceIndex device_index() const { return 0; }
  bool query() const { return cudaStreamQuery(stream_) == cudaSuccess; }
  void synchronize() const { C10_CUDA_CHECK(cudaStreamSynchronize(stream_)); }
  bool operator==(const CUDAStream& other) const { return stream_ == other.stream_; }
  bool operator!=(const CUDAStream& other) const { return stream_ != other.stream_; }

 private:
  cudaStream_t stream_;
};

inline cudaStream_t& current_stream_of_thread() {
  static thread_local cudaStream_t stream = nullptr;
  return stream;
}

inline CUDAStream getDefaultCUDAStream(c10::DeviceIndex = -1) { return CUDAStream(nullptr); }
inline CUDAStream getCurrentCUDAStream(c10::DeviceIndex = -1) { return CUDAStream(current_stream_of_thread()); }
inline void setCurrentCUDAStream(CUDAStream stream) { current_stream_of_thread() = stream.stream(); }
inline CUDAStream getStreamFromExternal(cudaStream_t stream, c10::DeviceIndex) { return CUDAStream(stream); }
inline CUDAStream getStreamFromPool(bool = false, c10::DeviceIndex = -1) {
  static const cudaStream_t stream = [] {
    cudaStream_t made = nullptr;
    C10_CUDA_CHECK(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    return made;
  }();
  return CUDAStream(stream);
}

}  // namespace c10::cuda
