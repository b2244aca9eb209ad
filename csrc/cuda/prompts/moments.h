// Moments of the attention probabilities of prompts in memory, and their gradients: launchers.
#pragma once

#include "../../params.h"
#include "layout.h"

namespace mhicl::cuda {

// N prompts with D numbers a token, and the projected queries r_h = KQ_h z_q of H heads.
template <class T>
struct GivenPrompts {
  int64_t n_prompts, context_length, dim, heads;
  const void* context;  // (N, L, D)
  Storage storage;
  int64_t prompt_stride, position_stride, element_stride;
  const int64_t* lengths;  // (N) valid positions, or null: all L
  const T* projected;      // (N, H, D)
  bool tf32;               // products with tokens on the matrix units, their factors rounded to TF32 (float only)
};

// Outputs as in MomentsForwardParams (csrc/params.h); all contiguous.
template <class T>
struct MomentsCall {
  GivenPrompts<T> prompts;
  int64_t directions;            // O, or 0
  const T* direction_rows;       // (H, O, D): v_oh
  T* moments;                    // (N, H, D), or null
  T* overlaps;                   // (N, H, H), or null
  T* jacobian;                   // (N, O, H, D), or null
};

template <class T>
struct MomentsGradientCall {
  GivenPrompts<T> prompts;
  const T* grad_moments;     // (N, H, D)
  const T* overlap_weights;  // (N, H, H): ∂K + ∂Kᵀ, or null
  T* grad_projected;         // (N, H, D): ∂r, or null
  T* grad_context;           // (N, L, D) contiguous, zero past each length, or null
};

// Whether a prompt finds room in a block's shared memory, which depends on D and, with overlaps, on H.
template <class T>
bool moments_fit(const MomentsCall<T>& call, const DeviceLimits& limits);
template <class T>
bool moments_gradient_fits(const MomentsGradientCall<T>& call, const DeviceLimits& limits);

// Expect that it does.
template <class T>
cudaError_t moments(const MomentsCall<T>& call, const DeviceLimits& limits, cudaStream_t stream);
template <class T>
cudaError_t moments_gradient(const MomentsGradientCall<T>& call, const DeviceLimits& limits, cudaStream_t stream);

}  // namespace mhicl::cuda
