// The fused step: prompts are drawn, attended to and differentiated close to the processor, a few at a time; what leaves a
// kernel are sums over its prompts. Plain structs. All arrays are contiguous.
//
// Everything is in whitened covariates ξ: where x = A ξ, the caller has folded A into the projections and outputs.
#pragma once

#include <cstdint>

#include "sampler_params.h"

namespace mhicl {

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
struct ResidualParams {
  StepPrompts<T> prompts;
  const T* projections;        // (d, H, d)
  const T* residual_weights;   // (H, 1 + H, d): ∂loss/∂a_h[c] = Σ_m weights[h, m, c] v_m[c], without V's part
  const T* overlap_weights;    // (H, H): twice ∂loss/∂K, which is symmetric; null without noise
  const T* covariate_outputs;  // (I, H, d): V_h, or null where all are zero
  const T* covariance_factor;  // A (d, d) and its transpose, or null
  const T* covariance_factor_transposed;

  int64_t pairs() const { return (prompts.heads + 1) * (prompts.heads + 2) / 2; }
};

// Sums over prompts, in this order.
template <class T>
struct ResidualSums {
  T* projections;        // (d, H, d)
  T* products;           // (pairs m ≤ n of 0 … H, d): v_m[c] v_n[c]
  T* overlaps;           // (H, H), with noise
  T* covariate_outputs;  // (I, H, d), with V

  template <class P>
  ResidualSums(const ResidualParams<P>& params, T* begin)
      : projections(begin),
        products(projections + params.prompts.dim_x * params.prompts.heads * params.prompts.dim_x),
        overlaps(products + params.pairs() * params.prompts.dim_x),
        covariate_outputs(overlaps + (params.overlap_weights ? params.prompts.heads * params.prompts.heads : 0)) {}
  static int64_t size(const ResidualParams<T>& params) {
    const StepPrompts<T>& p = params.prompts;
    const int64_t outputs = params.covariate_outputs ? p.tasks * p.heads * p.dim_x : 0;
    const int64_t overlaps = params.overlap_weights ? p.heads * p.heads : 0;
    return p.dim_x * p.heads * p.dim_x + params.pairs() * p.dim_x + overlaps + outputs;
  }
};

// The same mean, with what of the context the logits don't read integrated out as well: given the query they read only
// its projections on the span of r_1 … r_H, of which M = min(H, d) numbers a token are drawn. V must be zero.
template <class T>
struct SubspaceParams {
  ResidualParams<T> residual;
  const T* support;         // (I, d)
  const T* support_sizes;   // (I): tr S_j Σ
  const T* label_products;  // (I, H, H): c_{j,hg} = 2 λ_j Σ_i U_h[i,j] U_g[i,j]
  bool isotropic;           // every task reads everything, and x is white: S̃_j = Id
};

// Sums over prompts and both signs of their context, in this order.
template <class T>
struct SubspaceSums {
  ResidualSums<T> residual;
  T* outside;  // (I, H, H): τ_j K_hg, τ_j = tr S̃_j P

  SubspaceSums(const SubspaceParams<T>& params, T* begin)
      : residual(params.residual, begin), outside(begin + ResidualSums<T>::size(params.residual)) {}
  static int64_t size(const SubspaceParams<T>& params) {
    const StepPrompts<T>& p = params.residual.prompts;
    return ResidualSums<T>::size(params.residual) + p.tasks * p.heads * p.heads;
  }
};

}  // namespace mhicl
