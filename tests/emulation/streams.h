// Streams, their capture into graphs, and what may not be done meanwhile.
#pragma once

#include <functional>

#include "cuda_runtime_api.h"

namespace emulation __attribute__((visibility("hidden"))) {

using Work = std::function<void()>;

// Does the work now, or notes it for the graph that the stream captures.
cudaError_t enqueue(cudaStream_t stream, Work work);

// For calls that wait for the device: an error, which also spoils the capture, while any stream captures.
cudaError_t refuse_while_capturing();

// Remembers an error for cudaGetLastError.
cudaError_t returned(cudaError_t error);

}  // namespace emulation
