// The residuals of prompts whose coefficients and label noise are integrated out, between weights and kernels: the loss and
// its derivatives are as csrc/cpu/training/residual_terms.h says. In double.
#pragma once

#include "estimate.h"
#include "reduce.cuh"

namespace mhicl::cuda {

// U_h[i, j], OV's label block.
template <class T>
__device__ __forceinline__ double label(const EstimateArrays<T>& e, int64_t h, int64_t i, int64_t j) {
  return e.weights.ov[(h * e.task.tasks + i) * e.task.dim + e.task.dim_x + j];
}

// R_ij[m] = (δ_ij, −U_1[i, j], …, −U_H[i, j])[m].
template <class T>
__device__ __forceinline__ double residual(const EstimateArrays<T>& e, int64_t i, int64_t j, int64_t m) {
  return m == 0 ? double(i == j) : -label(e, m - 1, i, j);
}

// residual_weights[h, m, :] and, of m = 1 + g, overlap_weights[h, g], by a block; `shared` has room for I numbers.
template <class T>
__device__ __forceinline__ void weigh_residuals(const EstimateArrays<T>& e, int64_t h, int64_t m, double* shared) {
  const int64_t tasks = e.task.tasks, d = e.task.dim_x, heads = e.task.heads;
  for (int64_t j = threadIdx.x; j < tasks; j += blockDim.x) {
    double sum = 0;
    for (int64_t i = 0; i < tasks; ++i) sum += residual(e, i, j, 1 + h) * residual(e, i, j, m);
    shared[j] = sum;
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < d; c += blockDim.x) {
    double weight = 0;
    for (int64_t j = 0; j < tasks; ++j) weight += 2 * (e.task.signal[j] * shared[j]) * e.task.support[j * d + c];
    e.residual_weights[(h * (1 + heads) + m) * d + c] = T(weight);
  }
  if (threadIdx.x == 0 && m > 0 && e.overlap_weights) {
    double sum = 0;
    for (int64_t j = 0; j < tasks; ++j) sum += shared[j];
    e.overlap_weights[h * heads + m - 1] = T(2 * e.task.noise_std * e.task.noise_std * sum);
  }
}

// Gram_j (1 + H, 1 + H), by a block.
template <class T>
__device__ __forceinline__ void fill_gram(const EstimateArrays<T>& e, int64_t j, double* gram) {
  const int64_t d = e.task.dim_x, vectors = 1 + e.task.heads;
  for (int64_t at = threadIdx.x; at < vectors * vectors; at += blockDim.x) {
    const int64_t m = at / vectors, n = at % vectors;
    if (n < m) continue;
    const double* product = e.products + (m * vectors - m * (m - 1) / 2 + n - m) * d;  // row m has 1 + H − m pairs
    double sum = 0;
    for (int64_t c = 0; c < d; ++c) sum += e.task.support[j * d + c] * product[c];
    gram[m * vectors + n] = gram[n * vectors + m] = sum;
  }
}

// The derivatives in U_h[:, j] and task j's part of the loss, by a block; `shared` is for a reduction of one number.
template <class T>
__device__ __forceinline__ void differentiate_residuals(const EstimateArrays<T>& e, int64_t j, double* shared) {
  const int64_t tasks = e.task.tasks, heads = e.task.heads, vectors = 1 + heads;
  const double variance = e.task.noise_std * e.task.noise_std;
  double* gram = e.grams + j * vectors * vectors;
  fill_gram(e, j, gram);
  __syncthreads();
  double loss[1] = {0};
  for (int64_t at = threadIdx.x; at < tasks * vectors; at += blockDim.x) {
    const int64_t i = at / vectors, m = at % vectors, h = m - 1;
    double along = 0;  // Σ_n Gram_j[m, n] R_ij[n]
    for (int64_t n = 0; n < vectors; ++n) along += gram[m * vectors + n] * residual(e, i, j, n);
    loss[0] += e.task.signal[j] * residual(e, i, j, m) * along;
    if (m == 0) continue;
    double noise = 0;  // Σ_g K_hg U_g[i, j]
    for (int64_t g = 0; e.overlaps && g < heads; ++g) noise += e.overlaps[h * heads + g] * label(e, g, i, j);
    loss[0] += variance * label(e, h, i, j) * noise;
    e.gradient.ov[(h * tasks + i) * e.task.dim + e.task.dim_x + j] =
        T(2 * e.share * (variance * noise - e.task.signal[j] * along));
  }
  block_reduce<1>(loss, shared);
  if (threadIdx.x == 0) e.losses[j] = loss[0];
}

}  // namespace mhicl::cuda
