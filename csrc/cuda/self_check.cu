#include "self_check.h"

#include <algorithm>

#include "device.h"

namespace mhicl::cuda {
namespace {

constexpr int threads_per_block = 256;
constexpr int64_t most_blocks = 4096;  // past it each thread takes several elements

}  // namespace

__global__ void add_one_kernel(const float* x, float* out, int64_t size) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += stride) out[i] = x[i] + 1.0f;
}

cudaError_t add_one(const float* x, float* out, int64_t size, cudaStream_t stream) {
  const int64_t blocks = std::min((size + threads_per_block - 1) / threads_per_block, most_blocks);
  if (blocks == 0) return cudaSuccess;  // a launch of no blocks is an error
  return launch(add_one_kernel, dim3(unsigned(blocks)), dim3(threads_per_block), 0, stream, x, out, size);
}

}  // namespace mhicl::cuda
