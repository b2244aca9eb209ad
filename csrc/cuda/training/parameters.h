// From trained parameters to combined weights, and gradients back.
#pragma once

#include "../launchers.h"
#include "task.h"

namespace mhicl::cuda {

// Factored parameters: w_q, w_k, w_v (H, E, D), w_o (H, I, E).
template <class T>
struct Factors {
  int64_t heads, width, dim, tasks;
  T scale;  // KQ_h = scale · W_K,hᵀ W_Q,h
  TrainedParameters<T> trained;
};

// KQ_h = scale · W_K,hᵀ W_Q,h and OV_h = W_O,h W_V,h.
template <class T>
cudaError_t combine(const Factors<T>& factors, const DeviceWeights<T>& weights, cudaStream_t stream);

// ∂W_Q = W_K G, ∂W_K = W_Q Gᵀ with G = scale · ∂KQ; ∂W_V = W_Oᵀ ∂OV, ∂W_O = ∂OV W_Vᵀ.
template <class T>
cudaError_t pull_back(const Factors<T>& factors, const DeviceWeights<T>& gradient, cudaStream_t stream);

}  // namespace mhicl::cuda
