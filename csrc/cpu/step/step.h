// The table of the fused step's kernels.
#pragma once

#include "../../step_params.h"

namespace mhicl {

// Prompts that share their projections' weights pass; ranges of prompts begin at its multiples.
inline constexpr int64_t kStepChunk = 16;

// Overwrites `sums` and `loss` with those of prompts [begin, end), begin a multiple of kStepChunk. The workspace has as
// many elements as asked for, zero at first, and may be used again.
template <class Params, class T>
struct StepKernel {
  int64_t (*workspace)(const Params& params);
  void (*run)(const Params& params, int64_t begin, int64_t end, T* workspace, T* sums, double* loss);
};

template <class T>
struct StepKernels {
  StepKernel<SampledParams<T>, T> sampled;
  StepKernel<ResidualParams<T>, T> conditional;
  StepKernel<SubspaceParams<T>, T> subspace;
};

}  // namespace mhicl
