// What kernels are written with beyond CUDA C++ itself: shared memory, wide and asynchronous copies, 16-bit floats, matrix
// units; and their launch. No other file under csrc/cuda depends on what compiles it: where the sources are built for the
// host, emulation.h stands in for the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "launchers.h"

#if defined(MHICL_EMULATION)
#include "emulation.h"
#else
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#endif

namespace mhicl::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Four numbers that are read and written together, from addresses that are multiples of 16 bytes.
template <class T>
struct alignas(16) Four {
  T x[4];
};

#if !defined(MHICL_EMULATION)

// The block's dynamic shared memory, on a multiple of 16 bytes.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(16) char mhicl_shared_memory[];
  return mhicl_shared_memory;
}

// Four numbers at a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ Four<T> load_four(const T* from) {
  return *reinterpret_cast<const Four<T>*>(from);
}
template <class T>
__device__ __forceinline__ void store_four(T* to, const Four<T>& four) {
  *reinterpret_cast<Four<T>*>(to) = four;
}

// Starts a copy of BYTES (4, 8 or 16) from global to shared memory, both at multiples of BYTES. It may be read once
// wait_for_copies has returned, by other threads after a barrier behind that.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  __pipeline_memcpy_async(shared, global, BYTES);
}
// Closes a group of the copies that this thread has started.
__device__ __forceinline__ void commit_copies() { __pipeline_commit(); }
// Waits for all but the last PENDING groups of this thread.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
  __pipeline_wait_prior(PENDING);
}

// IEEE binary16, as its bits; rounds to nearest even.
__device__ __forceinline__ float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ __forceinline__ uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }

// The bits of x rounded to TF32, as the matrix units take it.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// D (16 × 8) += A (16 × 8) · B (8 × 8), by a whole warp (volatile, or the compiler may move it to where not all lanes are).
// With g = lane / 4 and t = lane % 4 a lane holds of A [g, t], [g + 8, t], [g, t + 4], [g + 8, t + 4]; of B [t, g],
// [t + 4, g]; of D [g, 2t], [g, 2t + 1], [g + 8, 2t], [g + 8, 2t + 1].
__device__ __forceinline__ void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif

// Enqueues a kernel, with the opt-in that more than 48 KiB of shared memory takes.
template <class... Params>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, int64_t shared_bytes, cudaStream_t stream,
                   std::type_identity_t<Params>... arguments) {
  constexpr int64_t without_asking = 48 << 10;
  if (shared_bytes > without_asking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace mhicl::cuda
