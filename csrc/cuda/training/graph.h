// Work that is enqueued again and again, as a CUDA graph.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>

namespace mhicl::cuda {

class Graph {
 public:
  // What enqueue(stream) launches. It is captured on a stream of its own: the legacy default stream, which is mostly the
  // current one, cannot be captured, and one of PyTorch's pool might be at work for somebody else. Relaxed, since kernels that
  // have never run are loaded meanwhile.
  template <class Enqueue>
  explicit Graph(const Enqueue& enqueue) {
    const Stream stream;
    Captured captured;
    C10_CUDA_CHECK(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeRelaxed));
    try {
      enqueue(stream.handle);
    } catch (...) {
      (void)cudaStreamEndCapture(stream.handle, &captured.graph);
      (void)cudaGetLastError();  // it is `enqueue`'s error that counts
      throw;
    }
    C10_CUDA_CHECK(cudaStreamEndCapture(stream.handle, &captured.graph));
    C10_CUDA_CHECK(cudaGraphInstantiate(&instance_, captured.graph, 0));
  }
  ~Graph() { (void)cudaGraphExecDestroy(instance_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch(cudaStream_t stream) const { C10_CUDA_CHECK(cudaGraphLaunch(instance_, stream)); }

 private:
  struct Stream {
    cudaStream_t handle = nullptr;
    Stream() { C10_CUDA_CHECK(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
    ~Stream() { (void)cudaStreamDestroy(handle); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
  };
  struct Captured {
    cudaGraph_t graph = nullptr;
    ~Captured() {
      if (graph != nullptr) (void)cudaGraphDestroy(graph);
    }
  };

  cudaGraphExec_t instance_ = nullptr;
};

}  // namespace mhicl::cuda
