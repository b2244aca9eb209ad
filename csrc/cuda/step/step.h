// The fused step on the device: prompts are drawn, attended to and differentiated by blocks that keep them in shared memory;
// what reaches memory are projected queries, averages and their gradients, of some thousand prompts at a time. The structs are
// those of csrc/step_params.h with pointers into device memory.
#pragma once

#include "../../step_params.h"
#include "../launchers.h"

namespace mhicl::cuda {

template <class T>
struct StepCall {
  int64_t n_prompts;
  const uint32_t* steps_done;  // on the device, added to the range's step; or null
  DeviceLimits limits;
  bool tf32;        // matrix products on the matrix units
  void* workspace;  // as many bytes as asked for
  double* sums;     // as SampledSums and ResidualSums lay them out
  double* loss;     // one number: the sum over prompts; of the conditional estimate, the covariate outputs' part of it
};

// 0 where a prompt finds no room in a block's shared memory.
template <class T>
int64_t sampled_workspace_bytes(const SampledParams<T>& params, int64_t n_prompts, const DeviceLimits& limits);
template <class T>
int64_t conditional_workspace_bytes(const ResidualParams<T>& params, int64_t n_prompts, const DeviceLimits& limits);

template <class T>
cudaError_t sampled_step(const SampledParams<T>& params, const StepCall<T>& call, cudaStream_t stream);

// Expects the covariate outputs, which may be zero.
template <class T>
cudaError_t conditional_step(const ResidualParams<T>& params, const StepCall<T>& call, cudaStream_t stream);

}  // namespace mhicl::cuda
