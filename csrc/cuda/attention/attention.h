// General attention on the GPU, with the CPU's parameters and pointers to the device. Everything is read in place; key
// lengths are clamped to [0, L]. Where grad_key is wanted of a softmax, `means` must be there. tf32: products of float may
// round their factors to TF32, for the matrix units; both passes should do the same.
#pragma once

#include "../../attention_params.h"
#include "../launchers.h"

namespace mhicl::cuda {

template <class T>
cudaError_t attention_forward(const AttentionForwardParams<T>& params, bool tf32, const DeviceLimits& limits,
                              cudaStream_t stream);

template <class T>
cudaError_t attention_backward(const AttentionBackwardParams<T>& params, bool tf32, const DeviceLimits& limits,
                               cudaStream_t stream);

}  // namespace mhicl::cuda
