#include "streams.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "runtime.h"

using Works = std::vector<emulation::Work>;

struct CUgraph_st {
  Works works;
};
struct CUgraphExec_st {
  Works works;
};
struct CUstream_st {
  std::unique_ptr<CUgraph_st> capture;  // while the stream captures
  bool spoilt = false;
};
struct CUevent_st {
  std::chrono::steady_clock::time_point recorded;
  bool timed;
  bool pending = false;  // recorded and not yet asked after: the first query is told to come back
};

namespace emulation {
namespace {

std::vector<cudaStream_t> streams;
cudaError_t last_error = cudaSuccess;

bool any_captures() {
  return std::any_of(streams.begin(), streams.end(), [](cudaStream_t stream) { return stream->capture != nullptr; });
}

}  // namespace

cudaError_t returned(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

cudaError_t refuse_while_capturing() {
  if (!any_captures()) return cudaSuccess;
  for (cudaStream_t stream : streams) stream->spoilt |= stream->capture != nullptr;
  return returned(cudaErrorStreamCaptureUnsupported);
}

cudaError_t enqueue(cudaStream_t stream, Work work) {
  if (stream == nullptr && any_captures()) return returned(cudaErrorStreamCaptureImplicit);
  if (stream != nullptr && stream->spoilt) return returned(cudaErrorStreamCaptureInvalidated);
  if (stream != nullptr && stream->capture) {
    stream->capture->works.push_back(std::move(work));
  } else {
    work();
  }
  return cudaSuccess;
}

}  // namespace emulation

using emulation::enqueue;
using emulation::log_call;
using emulation::refuse_while_capturing;
using emulation::returned;

cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return emulation::last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureImplicit: return "cudaErrorStreamCaptureImplicit";
  }
  return "unrecognized error";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

// Calls that wait for the device.

cudaError_t cudaDeviceSynchronize() {
  log_call("cudaDeviceSynchronize");
  return refuse_while_capturing();
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  log_call("cudaStreamSynchronize");
  return refuse_while_capturing();
}
cudaError_t cudaStreamQuery(cudaStream_t) {
  log_call("cudaStreamQuery");
  return refuse_while_capturing();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  log_call("cudaEventSynchronize");
  event->pending = false;
  return refuse_while_capturing();
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  log_call("cudaMemcpy");
  if (const cudaError_t error = refuse_while_capturing(); error != cudaSuccess) return error;
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  log_call("cudaMemset");
  if (const cudaError_t error = refuse_while_capturing(); error != cudaSuccess) return error;
  std::memset(to, value, bytes);
  return cudaSuccess;
}

// Calls that enqueue.

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  log_call("cudaMemcpyAsync");
  return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  log_call("cudaMemsetAsync");
  return enqueue(stream, [=] { std::memset(to, value, bytes); });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
  log_call("cudaStreamWaitEvent");
  return cudaSuccess;
}

// Streams and their capture.

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  log_call("cudaStreamCreateWithFlags");
  emulation::streams.push_back(*stream = new CUstream_st);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  log_call("cudaStreamDestroy");
  if (std::erase(emulation::streams, stream) == 0) return returned(cudaErrorInvalidResourceHandle);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  log_call("cudaStreamBeginCapture");
  if (stream == nullptr) return returned(cudaErrorStreamCaptureUnsupported);  // the default stream cannot capture
  if (stream->capture) return returned(cudaErrorInvalidValue);
  stream->capture = std::make_unique<CUgraph_st>();
  stream->spoilt = false;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  log_call("cudaStreamEndCapture");
  *graph = nullptr;
  if (stream == nullptr || !stream->capture) return returned(cudaErrorInvalidValue);
  std::unique_ptr<CUgraph_st> captured = std::move(stream->capture);
  if (std::exchange(stream->spoilt, false)) return returned(cudaErrorStreamCaptureInvalidated);
  *graph = captured.release();
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool captures = stream != nullptr && stream->capture;
  *status = !captures         ? cudaStreamCaptureStatusNone
            : stream->spoilt ? cudaStreamCaptureStatusInvalidated
                             : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  static thread_local cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
  std::swap(*mode, current);
  return cudaSuccess;
}

// Graphs.

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* instance, cudaGraph_t graph, unsigned long long) {
  log_call("cudaGraphInstantiate");
  *instance = new CUgraphExec_st{graph->works};
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  log_call("cudaGraphUpload");
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t instance, cudaStream_t stream) {
  log_call("cudaGraphLaunch");
  return enqueue(stream, [instance] {
    for (const emulation::Work& work : instance->works) work();
  });
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t instance) {
  log_call("cudaGraphExecDestroy");
  delete instance;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  log_call("cudaGraphDestroy");
  delete graph;
  return cudaSuccess;
}

// Events.

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  log_call("cudaEventCreateWithFlags");
  *event = new CUevent_st{{}, (flags & cudaEventDisableTiming) == 0};
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  log_call("cudaEventRecord");
  return enqueue(stream, [event] {
    event->recorded = std::chrono::steady_clock::now();
    event->pending = true;
  });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  log_call("cudaEventQuery");
  return std::exchange(event->pending, false) ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  log_call("cudaEventElapsedTime");
  if (!begin->timed || !end->timed) return returned(cudaErrorInvalidResourceHandle);
  if (begin->pending || end->pending) return returned(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(end->recorded - begin->recorded).count();
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  log_call("cudaEventDestroy");
  delete event;
  return cudaSuccess;
}
