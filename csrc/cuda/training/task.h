// What training works on, in device memory: plain structs.
#pragma once

#include <cstdint>

namespace mhicl::cuda {

// The distribution of prompts, as TaskSpec has it. D = d + I.
template <class T>
struct DeviceTask {
  int64_t dim_x, tasks, dim, heads;
  double noise_std;
  const double* support;                     // (I, d)
  const double* signal;                      // (I)
  const T* coefficient_scale;                // (I, d)
  const T *factor, *factor_transposed;       // A and Aᵀ (d, d), or null for the identity
  const int64_t* atoms;                      // (d), or null: gradients are not averaged
};

// Combined weights, or the gradient in them.
template <class T>
struct DeviceWeights {
  T* kq;  // (H, D, D)
  T* ov;  // (H, I, D)
};

// What is trained and what belongs to it, in the order kq, ov or w_q, w_k, w_v, w_o.
inline constexpr int most_parameters = 4;
template <class T>
struct TrainedParameters {
  int count;
  int64_t sizes[most_parameters];
  T *parameters[most_parameters], *gradients[most_parameters];
  T *first[most_parameters], *second[most_parameters];  // what the update rule keeps, or null
};

}  // namespace mhicl::cuda
