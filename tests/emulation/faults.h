// Kernels with one mistake each, which can be planted or left out, to show that the emulation finds it.
#pragma once

#include <string>

#include "cuda/launchers.h"

namespace mhicl::cuda::faults {

inline constexpr int kSize = 64;  // threads in the block, and elements of x and out

// Runs the kernel of that name in one block of kSize threads with kSize floats of shared memory. An unknown name is
// cudaErrorInvalidValue.
cudaError_t run(const std::string& name, bool planted, const float* x, float* out, cudaStream_t stream);

// Launches a kernel that does nothing in this shape, after asking for `granted` bytes of shared memory if not 0.
cudaError_t launch_shape(dim3 grid, dim3 block, int64_t shared_bytes, int granted, cudaStream_t stream);

// out[i] = which of the grid's threads ran as the i-th, among blocks of 64.
cudaError_t order(float* out, int blocks, cudaStream_t stream);

// out += x by a graph that is captured once and launched `times` times. planted: synchronises while it captures.
cudaError_t accumulate_by_graph(const float* x, float* out, int times, bool planted);

cudaError_t widen_halves(const uint16_t* bits, float* out, int64_t size, cudaStream_t stream);
cudaError_t narrow_to_halves(const float* x, uint16_t* out, int64_t size, cudaStream_t stream);
cudaError_t round_to_tf32(const float* x, float* out, int64_t size, cudaStream_t stream);
// d (16 × 8) += a (16 × 8) · b (8 × 8), row by row in memory.
cudaError_t multiply_add(const float* a, const float* b, float* d, cudaStream_t stream);
// out[0 … 6): for each lane its shuffles and votes, 32 numbers each.
cudaError_t exchange(const float* x, float* out, cudaStream_t stream);

}  // namespace mhicl::cuda::faults
