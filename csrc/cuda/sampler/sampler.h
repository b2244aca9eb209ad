// Prompts and random numbers, drawn on the GPU.
#pragma once

#include "../../sampler_params.h"
#include "../launchers.h"

namespace mhicl::cuda {

// Bytes of memory that sample_prompts wants besides its output: none unless prompts are too wide for shared memory.
template <class T>
int64_t sampler_workspace_bytes(const MultiTaskParams<T>& params, int64_t n_prompts, const DeviceLimits& limits);

// Prompts range.first_prompt, …, + n_prompts − 1. Without tasks, covariates alone: n_tasks is 0 and the target unused.
template <class T>
cudaError_t sample_prompts(const MultiTaskParams<T>& params, int64_t n_prompts, const DeviceLimits& limits,
                           void* workspace, cudaStream_t stream);

// Elements first, …, first + count − 1 of a stream: words (uint32_t) or normals (float, double).
template <class Value>
cudaError_t stream_elements(Value* out, int64_t count, const philox::Stream& elements, int64_t first,
                            const DeviceLimits& limits, cudaStream_t stream);

}  // namespace mhicl::cuda
