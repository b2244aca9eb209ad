#include "faults.h"

#include "cuda/device.h"

namespace mhicl::cuda::faults {

struct Task {
  const float* x;
  float* out;
  bool planted;
};

__device__ __forceinline__ float* shared_floats() { return reinterpret_cast<float*>(shared_memory()); }

__global__ void missing_barrier(Task task) {
  const int i = threadIdx.x;
  shared_floats()[i] = task.x[i];
  if (!task.planted) __syncthreads();
  task.out[i] = shared_floats()[(i + kWarp) % kSize];
}

__global__ void missing_warp_barrier(Task task) {
  const int i = threadIdx.x;
  shared_floats()[i] = task.x[i];
  if (!task.planted) __syncwarp();
  task.out[i] = shared_floats()[i ^ 1];
}

__global__ void barrier_after_return(Task task) {
  const int i = threadIdx.x;
  task.out[i] = task.x[i];
  if (task.planted && i == 5) return;
  __syncthreads();
}

__global__ void barrier_in_two_places(Task task) {
  const int i = threadIdx.x;
  task.out[i] = task.x[i];
  if (task.planted && i < kWarp) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  if (!task.planted) return;
  __syncthreads();
}

__global__ void barrier_count(Task task) {
  const int i = threadIdx.x;
  const int times = task.planted && i >= kWarp ? 3 : 2;
  for (int k = 0; k < times; ++k) __syncthreads();
  task.out[i] = task.x[i];
}

__global__ void shared_overrun(Task task) {
  const int i = threadIdx.x;
  shared_floats()[task.planted ? i + 1 : i] = task.x[i];
  task.out[i] = task.x[i];
}

__global__ void shared_read_overrun(Task task) {
  const int i = threadIdx.x;
  shared_floats()[i] = task.x[i];
  task.out[i] = shared_floats()[task.planted && i == kSize - 1 ? kSize : i];
}

__global__ void shared_underrun(Task task) {
  const int i = threadIdx.x;
  shared_floats()[task.planted ? i - 1 : i] = task.x[i];
  task.out[i] = task.x[i];
}

__global__ void uninitialised_shared(Task task) {
  const int i = threadIdx.x;
  if (!task.planted || i % 2 == 0) shared_floats()[i] = task.x[i];
  task.out[i] = shared_floats()[i];
}

__global__ void global_overrun(Task task) {
  const int i = threadIdx.x;
  task.out[task.planted ? i + 1 : i] = task.x[i];
}

__global__ void global_underrun(Task task) {
  const int i = threadIdx.x;
  task.out[task.planted ? i - 1 : i] = task.x[i];
}

__global__ void unwritten_global(Task task) {
  const int i = threadIdx.x;
  if (!task.planted || i != 40) task.out[i] = task.x[i];
}

__global__ void misaligned_load(Task task) {
  const int i = threadIdx.x;
  task.out[i] = load_four(task.x + (i / 4 * 4 + task.planted) % (kSize - 4)).x[0];
}

__global__ void misaligned_store(Task task) {
  const int i = threadIdx.x;
  if (i % 4 == 0) store_four(task.out + (i + task.planted) % kSize, load_four(task.x + i));
}

__global__ void misaligned_copy(Task task) {
  const int i = threadIdx.x;
  if (i % 4 == 0) copy_async<16>(shared_floats() + i, task.x + (i + task.planted) % kSize);
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  task.out[i] = shared_floats()[i];
}

__global__ void copy_without_wait(Task task) {
  const int i = threadIdx.x;
  copy_async<4>(shared_floats() + i, task.x + i);
  commit_copies();
  if (!task.planted) wait_for_copies<0>();
  __syncthreads();
  task.out[i] = shared_floats()[i];
}

// Two groups in flight; the wait lets one of them stay so.
__global__ void copy_of_later_group(Task task) {
  const int i = threadIdx.x;
  if (i < kWarp) {
    copy_async<4>(shared_floats() + i, task.x + i);
    commit_copies();
    copy_async<4>(shared_floats() + kWarp + i, task.x + kWarp + i);
    commit_copies();
    if (task.planted) {
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
  }
  __syncthreads();
  task.out[i] = shared_floats()[i];
}

__global__ void copy_without_commit(Task task) {
  const int i = threadIdx.x;
  copy_async<4>(shared_floats() + i, task.x + i);
  if (!task.planted) commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  task.out[i] = shared_floats()[i];
}

// What a thread has waited for, others may read only behind a barrier.
__global__ void copy_without_barrier(Task task) {
  const int i = threadIdx.x;
  copy_async<4>(shared_floats() + i, task.x + i);
  commit_copies();
  wait_for_copies<0>();
  if (!task.planted) __syncthreads();
  task.out[i] = shared_floats()[(i + kWarp) % kSize];
}

__global__ void copy_outside(Task task) {
  const int i = threadIdx.x;
  copy_async<4>(shared_floats() + (task.planted ? i + 1 : i), task.x + i);
  task.out[i] = task.x[i];
}

__global__ void shuffle_unnamed(Task task) {
  const int i = threadIdx.x;
  float value = task.x[i];
  if (i < 16) value = __shfl_sync(0xffffu, value, task.planted ? 20 : 3);
  task.out[i] = value;
}

__global__ void shuffle_exited(Task task) {
  const int i = threadIdx.x;
  task.out[i] = task.x[i];
  if (task.planted && i == 7) return;
  task.out[i] = __shfl_xor_sync(kAllLanes, task.x[i], 1);
}

__global__ void shuffle_masks(Task task) {
  const int i = threadIdx.x;
  const unsigned half = i % kWarp < 16 ? 0xffffu : 0xffff0000u;
  task.out[i] = __shfl_xor_sync(task.planted && i % kWarp < 16 ? kAllLanes : half, task.x[i], 1);
}

__global__ void shuffle_not_in_mask(Task task) {
  const int i = threadIdx.x;
  task.out[i] = __shfl_sync(task.planted ? 0xffffu : kAllLanes, task.x[i], 0);
}

__global__ void shuffle_and_barrier(Task task) {
  const int i = threadIdx.x;
  float value = task.x[i];
  if (!task.planted || i % kWarp != 9) value = __shfl_sync(kAllLanes, value, 0);
  __syncthreads();
  task.out[i] = value;
}

__global__ void shuffle_in_two_places(Task task) {
  const int i = threadIdx.x;
  float value = task.x[i];
  if (task.planted && i % 2 == 0) {
    value += __shfl_xor_sync(kAllLanes, value, 2);
  } else {
    value += __shfl_xor_sync(kAllLanes, value, 2);
  }
  task.out[i] = value;
}

__global__ void units_without_lanes(Task task) {
  const int i = threadIdx.x;
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (!task.planted || i % kWarp < 8) multiply_add_tf32(d, a, b);
  task.out[i] = d[0];
}

struct Named {
  const char* name;
  void (*kernel)(Task);
};

#define FAULT(name) {#name, name}
constexpr Named kFaults[] = {
    FAULT(missing_barrier), FAULT(missing_warp_barrier), FAULT(barrier_after_return), FAULT(barrier_in_two_places),
    FAULT(barrier_count), FAULT(shared_overrun), FAULT(shared_read_overrun), FAULT(shared_underrun),
    FAULT(uninitialised_shared), FAULT(global_overrun), FAULT(global_underrun), FAULT(unwritten_global),
    FAULT(misaligned_load), FAULT(misaligned_store), FAULT(misaligned_copy), FAULT(copy_without_wait),
    FAULT(copy_of_later_group), FAULT(copy_without_commit), FAULT(copy_without_barrier), FAULT(copy_outside),
    FAULT(shuffle_unnamed), FAULT(shuffle_exited), FAULT(shuffle_masks), FAULT(shuffle_not_in_mask),
    FAULT(shuffle_and_barrier), FAULT(shuffle_in_two_places), FAULT(units_without_lanes),
};
#undef FAULT

cudaError_t run(const std::string& name, bool planted, const float* x, float* out, cudaStream_t stream) {
  for (const Named& fault : kFaults) {
    if (name != fault.name) continue;
    return launch(fault.kernel, dim3(1), dim3(kSize), kSize * sizeof(float), stream, Task{x, out, planted});
  }
  return cudaErrorInvalidValue;
}

__global__ void nothing() {}

cudaError_t launch_shape(dim3 grid, dim3 block, int64_t shared_bytes, int granted, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, granted);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, nothing);
}

// Only here may threads count together without atomics: one at a time runs.
__global__ void note_order(float* out, int* count) { out[(*count)++] = float(blockIdx.x * blockDim.x + threadIdx.x); }

cudaError_t order(float* out, int blocks, cudaStream_t stream) {
  int count = 0;
  return launch(note_order, dim3(unsigned(blocks)), dim3(kSize), 0, stream, out, &count);
}

__global__ void accumulate(const float* x, float* out) { out[threadIdx.x] += x[threadIdx.x]; }

namespace {

cudaError_t capture(const float* x, float* out, bool planted, cudaStream_t stream, cudaGraph_t* graph) {
  cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  if (error == cudaSuccess) error = launch(accumulate, dim3(1), dim3(kSize), 0, stream, x, out);
  if (error == cudaSuccess && planted) error = cudaStreamSynchronize(stream);
  const cudaError_t ended = cudaStreamEndCapture(stream, graph);
  return error == cudaSuccess ? ended : error;
}

}  // namespace

cudaError_t accumulate_by_graph(const float* x, float* out, int times, bool planted) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t instance = nullptr;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaMemsetAsync(out, 0, kSize * sizeof(float), stream);
  if (error == cudaSuccess) error = capture(x, out, planted, stream, &graph);
  if (error == cudaSuccess) error = cudaGraphInstantiate(&instance, graph, 0);
  for (int i = 0; i < times && error == cudaSuccess; ++i) error = cudaGraphLaunch(instance, stream);
  if (instance != nullptr) (void)cudaGraphExecDestroy(instance);
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  (void)cudaStreamDestroy(stream);
  return error;
}

__global__ void widen(const uint16_t* bits, float* out, int64_t size) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < size) out[i] = half_to_float(bits[i]);
}
__global__ void narrow(const float* x, uint16_t* out, int64_t size) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < size) out[i] = float_to_half(x[i]);
}
__global__ void round_tf32(const float* x, float* out, int64_t size) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < size) out[i] = __uint_as_float(to_tf32(x[i]));
}

namespace {

dim3 blocks_for(int64_t size) { return dim3(unsigned((size + 255) / 256)); }

}  // namespace

cudaError_t widen_halves(const uint16_t* bits, float* out, int64_t size, cudaStream_t stream) {
  return launch(widen, blocks_for(size), dim3(256), 0, stream, bits, out, size);
}
cudaError_t narrow_to_halves(const float* x, uint16_t* out, int64_t size, cudaStream_t stream) {
  return launch(narrow, blocks_for(size), dim3(256), 0, stream, x, out, size);
}
cudaError_t round_to_tf32(const float* x, float* out, int64_t size, cudaStream_t stream) {
  return launch(round_tf32, blocks_for(size), dim3(256), 0, stream, x, out, size);
}

__global__ void multiply(const float* a, const float* b, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const uint32_t left[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]), to_tf32(a[g * 8 + t + 4]),
                            to_tf32(a[(g + 8) * 8 + t + 4])};
  const uint32_t right[2] = {to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g])};
  float sum[4] = {d[g * 8 + 2 * t], d[g * 8 + 2 * t + 1], d[(g + 8) * 8 + 2 * t], d[(g + 8) * 8 + 2 * t + 1]};
  multiply_add_tf32(sum, left, right);
  d[g * 8 + 2 * t] = sum[0];
  d[g * 8 + 2 * t + 1] = sum[1];
  d[(g + 8) * 8 + 2 * t] = sum[2];
  d[(g + 8) * 8 + 2 * t + 1] = sum[3];
}

cudaError_t multiply_add(const float* a, const float* b, float* d, cudaStream_t stream) {
  return launch(multiply, dim3(1), dim3(kWarp), 0, stream, a, b, d);
}

__global__ void exchange_kernel(const float* x, float* out) {
  const int lane = threadIdx.x;
  const float value = x[lane];
  out[lane] = __shfl_sync(kAllLanes, value, lane * 7 + 3);
  out[32 + lane] = __shfl_xor_sync(kAllLanes, value, 5);
  out[64 + lane] = __shfl_down_sync(kAllLanes, value, 3, 8);
  out[96 + lane] = __shfl_up_sync(kAllLanes, value, 3, 16);
  out[128 + lane] = __shfl_sync(kAllLanes, value, 9, 8);
  const unsigned votes = __ballot_sync(kAllLanes, value > 0);
  const bool any = __any_sync(kAllLanes, value > 0), all = __all_sync(kAllLanes, value > 0);
  out[160 + lane] = float(__popc(votes) + (votes >> lane & 1) * 100 + any * 1000 + all * 10000);
}

cudaError_t exchange(const float* x, float* out, cudaStream_t stream) {
  return launch(exchange_kernel, dim3(1), dim3(kWarp), 0, stream, x, out);
}

}  // namespace mhicl::cuda::faults
