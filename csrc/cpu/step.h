// The fused step: prompts are drawn, attended to and differentiated in cache, a few at a time; what leaves a kernel are
// sums over its prompts. Plain structs and the table of its kernels. All arrays are contiguous.
//
// Everything is in whitened covariates ξ: where x = A ξ, the caller has folded A into the projections and outputs.
#pragma once

#include <cstdint>

#include "sampler.h"

namespace mhicl {

// Prompts that share their projections' weights pass; ranges of prompts begin at its multiples.
inline constexpr int64_t kStepChunk = 16;

template <class T>
struct StepPrompts {
  PromptRange range;
  int64_t context_length, dim_x, tasks, heads;
  T noise_std;
  bool noisy_target;
};

// The mean of ‖ŷ − y_q‖² over drawn prompts. D = d + I.
template <class T>
struct SampledParams {
  StepPrompts<T> prompts;
  const T* projections;        // (d, H, D): KQ_h[e, c] at [c, h, e]
  const T* outputs;            // (I, H, D): OV_h[i, e] at [i, h, e]
  const T* coefficient_scale;  // (I, d)
  const T* covariance_factor;  // A (d, d) lower triangular, or null
};

// Sums over prompts, in this order.
template <class T>
struct SampledSums {
  T* projections;  // (d, H, D)
  T* outputs;      // (I, H, D)

  SampledSums(const StepPrompts<T>& p, T* begin)
      : projections(begin), outputs(begin + p.dim_x * p.heads * (p.dim_x + p.tasks)) {}
  static int64_t size(const StepPrompts<T>& p) { return (p.dim_x + p.tasks) * p.heads * (p.dim_x + p.tasks); }
};

// The same mean with β and ε integrated out. With v = (x_q, a_1, …, a_H), all it needs of a prompt are the products
// v_m[c] v_n[c] of each covariate c, K and, where there are covariate blocks V_h, ‖Σ_h V_h a_h‖².
template <class T>
struct ConditionalParams {
  StepPrompts<T> prompts;
  const T* projections;        // (d, H, d)
  const T* residual_weights;   // (H, 1 + H, d): ∂loss/∂a_h[c] = Σ_m weights[h, m, c] v_m[c], without V's part
  const T* overlap_weights;    // (H, H): twice ∂loss/∂K, which is symmetric; null without noise
  const T* covariate_outputs;  // (I, H, d): V_h, or null where all are zero
  const T* covariance_factor;  // A (d, d) and its transpose, or null
  const T* covariance_factor_transposed;
};

// Sums over prompts, in this order.
template <class T>
struct ConditionalSums {
  T* projections;        // (d, H, d)
  T* products;           // (pairs m ≤ n of 0 … H, d): v_m[c] v_n[c]
  T* overlaps;           // (H, H), with noise
  T* covariate_outputs;  // (I, H, d), with V

  ConditionalSums(const ConditionalParams<T>& params, T* begin)
      : projections(begin),
        products(projections + square(params)),
        overlaps(products + pairs(params) * params.prompts.dim_x),
        covariate_outputs(overlaps + noise(params)) {}
  static int64_t size(const ConditionalParams<T>& params) {
    const StepPrompts<T>& p = params.prompts;
    const int64_t outputs = params.covariate_outputs ? p.tasks * p.heads * p.dim_x : 0;
    return square(params) + pairs(params) * p.dim_x + noise(params) + outputs;
  }
  static int64_t pairs(const ConditionalParams<T>& params) {
    return (params.prompts.heads + 1) * (params.prompts.heads + 2) / 2;
  }

 private:
  static int64_t square(const ConditionalParams<T>& params) {
    return params.prompts.dim_x * params.prompts.heads * params.prompts.dim_x;
  }
  static int64_t noise(const ConditionalParams<T>& params) {
    return params.overlap_weights ? params.prompts.heads * params.prompts.heads : 0;
  }
};

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
  StepKernel<ConditionalParams<T>, T> conditional;
};

}  // namespace mhicl
