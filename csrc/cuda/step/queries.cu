#include "queries.h"

#include <algorithm>

#include "drawn.cuh"

namespace mhicl::cuda {

// A warp for each prompt.
template <class T>
__global__ void draw_queries_kernel(QueryChunk<T> chunk) {
  const DrawnRange range{chunk.range, chunk.steps_done};
  const int64_t warps = int64_t{gridDim.x} * (blockDim.x / kWarp);
  for (int64_t n = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp; n < chunk.count; n += warps) {
    draw_numbers(range.stream(chunk.first + n, philox::kPrompt), int(chunk.dim_x), chunk.queries + n * chunk.dim_x,
                 int(threadIdx.x) % kWarp, kWarp);
  }
}

template <class T>
cudaError_t draw_queries(const QueryChunk<T>& chunk, cudaStream_t stream) {
  constexpr int64_t warps = 4, most_blocks = 1 << 16;
  if (chunk.count == 0) return cudaSuccess;
  const int64_t blocks = std::min((chunk.count + warps - 1) / warps, most_blocks);
  return launch(draw_queries_kernel<T>, dim3(unsigned(blocks)), dim3(warps * kWarp), 0, stream, chunk);
}

template cudaError_t draw_queries(const QueryChunk<float>&, cudaStream_t);
template cudaError_t draw_queries(const QueryChunk<double>&, cudaStream_t);

}  // namespace mhicl::cuda
