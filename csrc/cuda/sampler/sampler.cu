#include "sampler.h"

#include "prompts.cuh"

namespace mhicl::cuda {

// Blocks on a multiprocessor that the registers are to allow; 0 leaves it to the compiler.
template <class T, bool IN_SHARED>
inline constexpr int blocks_beside = std::is_same_v<T, float> && IN_SHARED ? 5 : 0;

// IN_SHARED: what a block draws is kept in shared memory, otherwise in the workspace.
template <class T, bool IN_SHARED>
__global__ __launch_bounds__(sampler_threads, (blocks_beside<T, IN_SHARED>)) void sample_kernel(
    MultiTaskParams<T> p, SamplerPlan plan, T* workspace) {
  T* const memory = IN_SHARED ? reinterpret_cast<T*>(shared_memory()) : workspace + blockIdx.x * plan.numbers();
  for (int64_t index = blockIdx.x; index < plan.items; index += gridDim.x) {
    const SampledItem item = sampled_item(plan, p.context_length, index);
    draw_prompts(p, plan, item, memory);
    __syncthreads();
    make_coefficients(p, plan, item, memory);
    if (item.first_token == 0) make_queries(p, plan, item, memory);
    if (p.covariance_factor) correlate(p, plan, item, memory);
    __syncthreads();
    if (item.first_token == 0) make_targets(p, plan, item, memory);
    if (label_rows(p.n_tasks) == 1) label<1>(p, plan, item, memory);
    else label<covariate_rows>(p, plan, item, memory);
    __syncthreads();
    write_context(p, plan, item, memory);
    __syncthreads();  // the next item is drawn over this one
  }
}

template <class T>
int64_t sampler_workspace_bytes(const MultiTaskParams<T>& p, int64_t n_prompts, const DeviceLimits& limits) {
  if (n_prompts == 0) return 0;
  const SamplerPlan plan = sampler_plan(p, n_prompts, limits);
  return plan.in_shared_memory ? 0 : plan.blocks * plan.numbers() * int64_t{sizeof(T)};
}

template <class T>
cudaError_t sample_prompts(const MultiTaskParams<T>& p, int64_t n_prompts, const DeviceLimits& limits, void* workspace,
                           cudaStream_t stream) {
  if (n_prompts == 0) return cudaSuccess;  // a launch of no blocks is an error
  const SamplerPlan plan = sampler_plan(p, n_prompts, limits);
  const int64_t shared = plan.in_shared_memory ? plan.numbers() * int64_t{sizeof(T)} : 0;
  return launch(plan.in_shared_memory ? sample_kernel<T, true> : sample_kernel<T, false>, dim3(unsigned(plan.blocks)),
                dim3(sampler_threads), shared, stream, p, plan, static_cast<T*>(workspace));
}

template <class Value>
__global__ __launch_bounds__(sampler_threads) void stream_kernel(Value* out, int64_t count, philox::Stream stream,
                                                                 int64_t first) {
  const int64_t first_block = first / philox::kGroup * philox::kLanes;
  const int64_t blocks = ((first + count + philox::kGroup - 1) / philox::kGroup) * philox::kLanes - first_block;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < blocks; i += stride) {
    const int64_t block = first_block + i;
    Value value[philox::kWords];
    if constexpr (std::is_same_v<Value, uint32_t>) {
      const philox::Block words = philox::block(stream, uint32_t(block));
      for (int k = 0; k < philox::kWords; ++k) value[k] = words.word[k];
    } else {
      const Four<Value> normals = normals_of_block<Value>(stream, uint32_t(block));
      for (int k = 0; k < philox::kWords; ++k) value[k] = normals.x[k];
    }
    const int64_t place = block / philox::kLanes * philox::kGroup + block % philox::kLanes - first;
    for (int k = 0; k < philox::kWords; ++k) {
      const int64_t at = place + k * philox::kLanes;
      if (0 <= at && at < count) out[at] = value[k];
    }
  }
}

template <class Value>
cudaError_t stream_elements(Value* out, int64_t count, const philox::Stream& elements, int64_t first,
                            const DeviceLimits& limits, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const int64_t philox_blocks = (first % philox::kGroup + count + philox::kGroup - 1) / philox::kGroup * philox::kLanes;
  const int64_t blocks = std::min<int64_t>(divide_up(philox_blocks, sampler_threads), 32 * limits.multiprocessors);
  return launch(stream_kernel<Value>, dim3(unsigned(blocks)), dim3(sampler_threads), 0, stream, out, count, elements,
                first);
}

template int64_t sampler_workspace_bytes(const MultiTaskParams<float>&, int64_t, const DeviceLimits&);
template int64_t sampler_workspace_bytes(const MultiTaskParams<double>&, int64_t, const DeviceLimits&);
template cudaError_t sample_prompts(const MultiTaskParams<float>&, int64_t, const DeviceLimits&, void*, cudaStream_t);
template cudaError_t sample_prompts(const MultiTaskParams<double>&, int64_t, const DeviceLimits&, void*, cudaStream_t);
template cudaError_t stream_elements(uint32_t*, int64_t, const philox::Stream&, int64_t, const DeviceLimits&,
                                     cudaStream_t);
template cudaError_t stream_elements(float*, int64_t, const philox::Stream&, int64_t, const DeviceLimits&, cudaStream_t);
template cudaError_t stream_elements(double*, int64_t, const philox::Stream&, int64_t, const DeviceLimits&,
                                     cudaStream_t);

}  // namespace mhicl::cuda
