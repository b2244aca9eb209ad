// The fused step with coefficients and label noise integrated out, given the covariates. What the loss and the gradient
// in OV need are sums over prompts; the gradient in the projections needs each prompt's own attention.
#pragma once

#include "../../step_params.h"
#include "../prompts/passes.cuh"
#include "drawn.cuh"

namespace mhicl::cuda {

// Prompts [first, first + count) of a step; memory begins with the first of them.
template <class T>
struct ConditionalChunk {
  ResidualParams<T> params;
  const uint32_t* steps_done;
  int64_t first, count;
  T* projected;  // (n, H, d): r, then ∂r
  T* vectors;    // (n, 1 + H, d): v = (x_q, a_1, …, a_H)
  T* overlaps;   // (n, H, H): K, with noise
  T* outputs;    // (n, I): 2 Σ_h V_h a_h
  T* losses;     // (n): ‖Σ_h V_h a_h‖²
};

// Elements of shared memory that the kernel asks for: averages of all heads, two tables (heads at once, d), the query, K
// and the outputs.
inline int64_t conditional_extra(int64_t dim_x, int64_t tasks, int64_t padded_heads, int heads_at_once, bool overlaps) {
  return (padded_heads + 2 * heads_at_once + 1) * dim_x + (overlaps ? padded_heads * padded_heads : 0) + tasks;
}

template <class A>
struct ConditionalPrompt {
  using T = typename A::T;
  static constexpr int HEADS = A::HEADS;

  const A& a;
  const ConditionalChunk<T>& chunk;
  const ResidualParams<T>& params;
  const StepPrompts<T>& p;
  int d, tasks, heads;
  T *averages, *weighed, *gradients, *query, *overlaps, *outputs;

  __device__ __forceinline__ ConditionalPrompt(const A& a, const ConditionalChunk<T>& chunk)
      : a(a), chunk(chunk), params(chunk.params), p(params.prompts), d(int(p.dim_x)), tasks(int(p.tasks)),
        heads(int(p.heads)) {
    averages = a.extra();
    weighed = averages + a.layout.groups * HEADS * d;
    gradients = weighed + HEADS * d;
    query = gradients + HEADS * d;
    outputs = query + d;
    overlaps = outputs + tasks;
  }

  __device__ __forceinline__ bool has_overlaps() const { return params.overlap_weights != nullptr; }
  __device__ __forceinline__ T* vectors(int64_t n) const { return chunk.vectors + n * (1 + heads) * d; }

  // out = in · factor for rows of d numbers; in place of the product with the identity, a copy.
  __device__ __forceinline__ void multiply(const T* in, const T* factor, int rows, T* out) const {
    for (int at = a.thread; at < rows * d; at += a.threads) {
      const T* const row = in + at / d * d;
      T sum = in[at];
      if (factor != nullptr) {
        sum = 0;
        for (int c = 0; c < d; ++c) sum = std::fma(row[c], factor[c * d + at % d], sum);
      }
      out[at] = sum;
    }
  }

  // v, and K of the prompt, to memory.
  __device__ __forceinline__ void keep(int64_t n) const {
    multiply(query, params.covariance_factor_transposed, 1, vectors(n));
    multiply(averages, params.covariance_factor_transposed, heads, vectors(n) + d);
    if (has_overlaps()) {
      for (int at = a.thread; at < heads * heads; at += a.threads) chunk.overlaps[n * heads * heads + at] = overlaps[at];
    }
    __syncthreads();
  }

  // Σ_h V_h a_h, twice that to memory, and the square of its length.
  __device__ __forceinline__ void find_outputs(int64_t n) const {
    const T* const v = vectors(n) + d;
    for (int i = a.warp; i < tasks; i += a.layout.warps) {
      T sum = 0;
      for (int at = a.lane; at < heads * d; at += kWarp) {
        sum = std::fma(params.covariate_outputs[int64_t(i) * heads * d + at], v[at], sum);
      }
      sum = sum_of_warp(sum);
      if (a.lane == 0) outputs[i] = chunk.outputs[n * tasks + i] = T(2) * sum;
    }
    __syncthreads();
    if (a.thread == 0) {
      T loss = 0;
      for (int i = 0; i < tasks; ++i) loss = std::fma(T(0.25) * outputs[i], outputs[i], loss);
      chunk.losses[n] = loss;
    }
  }

  // ∂loss/∂a_h[c], in x.
  __device__ __forceinline__ T gradient(const T* v, int head, int c) const {
    T sum = 0;
    const T* const weights = params.residual_weights + int64_t(head) * (1 + heads) * d + c;
    for (int m = 0; m < 1 + heads; ++m) sum = std::fma(weights[m * d], v[m * d + c], sum);
    for (int i = 0; i < tasks; ++i) {
      sum = std::fma(outputs[i], params.covariate_outputs[(int64_t(i) * heads + head) * d + c], sum);
    }
    return sum;
  }

  // ∂loss/∂a_h of a group's heads, in ξ, into the second panel.
  __device__ __forceinline__ void fill_gradients(int64_t n, int group) const {
    const T* const v = vectors(n);
    const T* const factor = params.covariance_factor;
    if (factor == nullptr) {
      a.fill_panel(a.second_panel, group, [&](int head, int c) { return gradient(v, head, c); });
      return;
    }
    for (int at = a.thread; at < a.heads_of(group) * d; at += a.threads) {
      gradients[at] = gradient(v, group * HEADS + at / d, at % d);
    }
    __syncthreads();
    multiply(gradients, factor, a.heads_of(group), weighed);
    __syncthreads();
    a.fill_panel(a.second_panel, group, [&](int head, int c) { return weighed[(head - group * HEADS) * d + c]; });
  }
};

template <class T, int HEADS, bool TF32>
__global__ void __launch_bounds__(kMostWarps * kWarp, kBlocksAtOnce<T>)
conditional_kernel(ConditionalChunk<T> chunk, AttendLayout layout) {
  using A = Attend<T, HEADS, TF32>;
  const A a(layout);
  const ConditionalPrompt<A> prompt(a, chunk);
  const int d = prompt.d;
  const DrawnRange range{prompt.p.range, chunk.steps_done};
  for (int64_t n = blockIdx.x; n < chunk.count; n += gridDim.x) {
    T* const projected = chunk.projected + n * prompt.heads * d;
    const philox::Stream context_stream = range.stream(chunk.first + n, philox::kContext);
    draw_numbers(range.stream(chunk.first + n, philox::kPrompt), d, prompt.query, a.thread, a.threads);
    const auto fetch = [&](int first, int count) {
      draw_tokens<T>(context_stream, {0, d}, first, count, a.tokens, layout.token_stride, a.thread, a.threads);
      a.pad_tokens(count);
      __syncthreads();
    };
    const auto fill_panel = [&](int group) {
      a.fill_panel(a.panel, group, [&](int head, int c) { return projected[head * d + c]; });
    };
    const int count = int(prompt.p.context_length);
    const Passes<A, decltype(fetch), decltype(fill_panel)> passes{a, fetch, fill_panel, count};
    passes.begin();
    for (int group = 0; group < layout.groups; ++group) passes.attend(group, prompt.averages + group * HEADS * d);
    if (prompt.has_overlaps()) passes.find_overlaps(prompt.overlaps);
    prompt.keep(n);
    prompt.find_outputs(n);
    for (int group = 0; group < layout.groups; ++group) {
      prompt.fill_gradients(n, group);
      T* const average = prompt.averages + group * HEADS * d;
      passes.find_means(group, average, prompt.params.overlap_weights, prompt.overlaps);
      passes.weigh(group, prompt.has_overlaps() ? a.products : a.weights(group), average, prompt.weighed,
                   prompt.params.overlap_weights);
      for (int at = a.thread; at < a.heads_of(group) * d; at += a.threads) average[at] = prompt.weighed[at];
      __syncthreads();
    }
    // Until the last group's weights have been restored r is read; ∂r took the place of averages that are done with.
    for (int at = a.thread; at < prompt.heads * d; at += a.threads) projected[at] = prompt.averages[at];
    __syncthreads();
  }
}

}  // namespace mhicl::cuda
