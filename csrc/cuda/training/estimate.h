// What stands between weights and the fused step: the arrays that it reads are made of the weights, and the gradient of its
// sums. As the CPU's estimates do it, csrc/cpu/training, in a few launches.
#pragma once

#include "../../step_params.h"
#include "../launchers.h"
#include "task.h"

namespace mhicl::cuda {

template <class T>
struct EstimateArrays {
  DeviceTask<T> task;
  bool conditional;
  double share;  // of a prompt in the mean

  DeviceWeights<const T> weights;
  DeviceWeights<T> gradient;  // zero at first; what is never written stays so

  // Of the step. KQ's first `rows` rows and OV's first `width` columns take part, folded with A where `folds_outputs`.
  int64_t rows, width;
  bool folds_outputs;
  T* projections;       // (d, H, rows)
  T* outputs;           // (I, H, width)
  T* residual_weights;  // (H, 1 + H, d), conditional
  T* overlap_weights;   // (H, H), conditional; null without noise
  const double* sums;   // as SampledSums and ResidualSums have them, the outputs' at output_sums
  const double *products, *overlaps, *output_sums;

  // Room. Under A: KQ's covariate block times A, and the gradient in what is folded.
  T* half;                    // (H, d, d)
  DeviceWeights<T> whitened;  // (H, rows, d) and (H, I, d)
  double* grams;              // (I, 1 + H, 1 + H), conditional
  double* losses;             // (I), conditional: the residuals' part of the loss, task by task, sums over prompts
};

// weights -> projections, outputs, residual_weights, overlap_weights.
template <class T>
cudaError_t prepare_estimate(const EstimateArrays<T>& arrays, cudaStream_t stream);

// sums -> gradient, losses.
template <class T>
cudaError_t finish_estimate(const EstimateArrays<T>& arrays, cudaStream_t stream);

}  // namespace mhicl::cuda
