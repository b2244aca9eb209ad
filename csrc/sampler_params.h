// What the sampling kernels are called with: plain structs.
#pragma once

#include <cstdint>

#include "philox.h"

namespace mhicl {

// Prompts first_prompt, first_prompt + 1, … of one step.
struct PromptRange {
  uint64_t seed;
  uint32_t step;
  uint64_t first_prompt;

  MHICL_HOST_DEVICE philox::Stream stream(int64_t prompt, uint32_t id) const {
    return philox::stream(seed, step, first_prompt + uint64_t(prompt), id);
  }
};

// Multi-task linear regression. All arrays are contiguous.
template <class T>
struct MultiTaskParams {
  PromptRange range;
  int64_t context_length, dim_x, n_tasks;
  const T* coefficient_scale;  // (n_tasks, dim_x): the coefficients' standard deviations
  const T* covariance_factor;  // (dim_x, dim_x) lower triangular, or null for the identity
  T noise_std;
  bool noisy_target;
  T* context;  // (n_prompts, context_length, dim_x + n_tasks)
  T* query;    // (n_prompts, dim_x + n_tasks)
  T* target;   // (n_prompts, n_tasks)
};

// The covariates alone, before the covariance factor.
template <class T>
struct CovariatesParams {
  PromptRange range;
  int64_t context_length, dim_x;
  T* xi;        // (n_prompts, context_length, dim_x)
  T* xi_query;  // (n_prompts, dim_x)
};

}  // namespace mhicl
