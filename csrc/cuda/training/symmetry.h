// The symmetries of a task with white covariates, as csrc/cpu/training/symmetry.h has them.
#pragma once

#include "../launchers.h"
#include "task.h"

namespace mhicl::cuda {

// How far averaging over the symmetries moves the weights of one head: the largest change and the largest entry.
struct HeadAsymmetry {
  double kq_apart, kq_largest, ov_apart, ov_largest;
};

// Averages the gradient in place, and tells of each head's weights how far they are from their own average.
template <class T>
cudaError_t average_over_symmetries(const DeviceTask<T>& task, const DeviceWeights<const T>& weights,
                                    const DeviceWeights<T>& gradient, HeadAsymmetry* asymmetry, cudaStream_t stream);

}  // namespace mhicl::cuda
