// The fused step of drawn prompts. Labels are never formed: y_l = βᵀξ_l + σ ε_l, so a vector v that multiplies a token
// (ξ, y) multiplies (ξ, ε) as its fold (v_x + Σ_i v_y[i] β_i, σ v_y), and averages of tokens are unfolded likewise. With
// a covariance, β stands for Aᵀβ.
#pragma once

#include "../../step_params.h"
#include "../prompts/passes.cuh"
#include "drawn.cuh"

namespace mhicl::cuda {

// Prompts [first, first + count) of a step; memory begins with the first of them.
template <class T>
struct SampledChunk {
  SampledParams<T> params;
  const uint32_t* steps_done;
  int64_t first, count;
  T* projected;  // (n, H, D): r, then ∂r
  T* averages;   // (n, H, D): c
  T* errors;     // (n, I): 2 (ŷ − y_q)
  T* losses;     // (n)
};

inline int64_t sampled_rows(int64_t dim_x, int64_t tasks, bool noisy) { return dim_x + (noisy ? tasks : 0); }

// Elements of shared memory that the kernel asks for: averages of all heads, two tables (heads at once, D), the numbers
// that begin the prompt's stream, β and errors.
inline int64_t sampled_extra(int64_t dim_x, int64_t tasks, int64_t padded_heads, int heads_at_once) {
  return (padded_heads + 2 * heads_at_once) * (dim_x + tasks) + dim_x * (1 + 2 * tasks) + 2 * tasks;
}

template <class A>
struct SampledPrompt {
  using T = typename A::T;
  static constexpr int HEADS = A::HEADS;

  const A& a;
  const SampledChunk<T>& chunk;
  const SampledParams<T>& params;
  const StepPrompts<T>& p;
  int d, tasks, dim, rows;
  T *averages, *weighed, *direction, *numbers, *beta, *errors;
  philox::Stream context_stream, prompt_stream;

  __device__ __forceinline__ SampledPrompt(const A& a, const SampledChunk<T>& chunk)
      : a(a), chunk(chunk), params(chunk.params), p(params.prompts), d(int(p.dim_x)), tasks(int(p.tasks)), dim(d + tasks),
        rows(a.layout.rows) {
    averages = a.extra();
    weighed = averages + a.layout.groups * HEADS * dim;
    direction = weighed + HEADS * dim;
    numbers = direction + HEADS * dim;
    beta = numbers + d * (1 + tasks) + tasks;
    errors = beta + d * tasks;
  }

  __device__ __forceinline__ bool noisy_target() const { return p.noisy_target && p.noise_std > T(0); }

  // The numbers that begin the prompt's stream, and β.
  __device__ __forceinline__ void draw_prompt(int64_t n) {
    const DrawnRange range{p.range, chunk.steps_done};
    context_stream = range.stream(chunk.first + n, philox::kContext);
    prompt_stream = range.stream(chunk.first + n, philox::kPrompt);
    draw_numbers(prompt_stream, d * (1 + tasks) + (noisy_target() ? tasks : 0), numbers, a.thread, a.threads);
    __syncthreads();
    const T* const factor = params.covariance_factor;
    T* const scaled = factor == nullptr ? beta : numbers + d;
    for (int at = a.thread; at < tasks * d; at += a.threads) scaled[at] = params.coefficient_scale[at] * numbers[d + at];
    __syncthreads();
    if (factor == nullptr) return;
    for (int at = a.thread; at < tasks * d; at += a.threads) {
      T sum = 0;
      for (int c = 0; c < d; ++c) sum = std::fma(scaled[at / d * d + c], factor[c * d + at % d], sum);
      beta[at] = sum;
    }
    __syncthreads();
  }

  __device__ __forceinline__ void draw_tokens_of(int first, int count) const {
    draw_tokens<T>(context_stream, {0, d}, first, count, a.tokens, a.layout.token_stride, a.thread, a.threads);
    if (rows > d) {
      const int64_t noise = philox::first_context_noise(d, tasks) / philox::kTile;
      draw_tokens<T>(prompt_stream, {noise, tasks}, first, count, a.tokens + d, a.layout.token_stride, a.thread, a.threads);
    }
    a.pad_tokens(count);
    __syncthreads();
    if (rows == d) return;
    for (int at = a.thread; at < count * tasks; at += a.threads) {
      a.tokens[at / tasks * a.layout.token_stride + d + at % tasks] *= p.noise_std;
    }
    __syncthreads();
  }

  // The fold's entry c of v (D), without σ: the noises of tokens have it.
  __device__ __forceinline__ T folded(const T* v, int c) const {
    T sum = v[c];
    if (c < d) {
      for (int i = 0; i < tasks; ++i) sum = std::fma(v[d + i], beta[i * d + c], sum);
    }
    return sum;
  }

  // Averages of (ξ, σ ε), (HEADS, rows), to those of tokens, (H, D) in memory.
  __device__ __forceinline__ void unfold(int group, const T* folded, T* out) const {
    T* const to = out + int64_t(group) * HEADS * dim;
    const int here = a.heads_of(group);
    for (int at = a.thread; at < here * d; at += a.threads) to[at / d * dim + at % d] = folded[at / d * rows + at % d];
    for (int at = a.warp; at < here * tasks; at += a.layout.warps) {
      const int h = at / tasks, i = at % tasks;
      T sum = 0;
      for (int c = a.lane; c < d; c += kWarp) sum = std::fma(beta[i * d + c], folded[h * rows + c], sum);
      sum = sum_of_warp(sum);
      if (a.lane == 0) to[h * dim + d + i] = rows > d ? sum + folded[h * rows + d + i] : sum;
    }
  }

  // 2 (ŷ − y_q) from the averages, and the prompt's loss.
  __device__ __forceinline__ void find_errors(int64_t n) const {
    const int size = int(p.heads) * dim;
    const T* const c = chunk.averages + n * size;
    for (int i = a.warp; i < tasks; i += a.layout.warps) {
      T residual = 0;
      const T* const output = params.outputs + int64_t(i) * size;
      for (int at = a.lane; at < size; at += kWarp) residual = std::fma(output[at], c[at], residual);
      for (int e = a.lane; e < d; e += kWarp) residual = std::fma(-beta[i * d + e], numbers[e], residual);
      residual = sum_of_warp(residual);
      if (noisy_target()) residual -= p.noise_std * numbers[d * (1 + tasks) + i];
      if (a.lane == 0) errors[i] = chunk.errors[n * tasks + i] = T(2) * residual;
    }
    __syncthreads();
    if (a.thread == 0) {
      T loss = 0;
      for (int i = 0; i < tasks; ++i) loss = std::fma(T(0.25) * errors[i], errors[i], loss);
      chunk.losses[n] = loss;
    }
  }

  // ∂c_h = Σ_i 2 (ŷ − y_q)_i OV_i of a group's heads, (HEADS, D).
  __device__ __forceinline__ void find_direction(int group) const {
    const int64_t size = p.heads * dim;
    for (int at = a.thread; at < a.heads_of(group) * dim; at += a.threads) {
      T sum = 0;
      for (int i = 0; i < tasks; ++i) {
        sum = std::fma(errors[i], params.outputs[i * size + int64_t(group) * HEADS * dim + at], sum);
      }
      direction[at] = sum;
    }
    __syncthreads();
  }
};

template <class T, int HEADS, bool TF32>
__global__ void __launch_bounds__(kMostWarps * kWarp, kBlocksAtOnce<T>)
sampled_kernel(SampledChunk<T> chunk, AttendLayout layout) {
  using A = Attend<T, HEADS, TF32>;
  const A a(layout);
  SampledPrompt<A> prompt(a, chunk);
  const int64_t row = chunk.params.prompts.heads * prompt.dim;
  for (int64_t n = blockIdx.x; n < chunk.count; n += gridDim.x) {
    T *const projected = chunk.projected + n * row, *const averages = chunk.averages + n * row;
    prompt.draw_prompt(n);
    const auto fetch = [&](int first, int count) { prompt.draw_tokens_of(first, count); };
    const auto fill_panel = [&](int group) {
      a.fill_panel(a.panel, group, [&](int head, int c) { return prompt.folded(projected + head * prompt.dim, c); });
    };
    const int count = int(chunk.params.prompts.context_length);
    const Passes<A, decltype(fetch), decltype(fill_panel)> passes{a, fetch, fill_panel, count};
    passes.begin();
    for (int group = 0; group < layout.groups; ++group) {
      T* const average = prompt.averages + group * HEADS * prompt.rows;
      passes.attend(group, average);
      prompt.unfold(group, average, averages);
      __syncthreads();
    }
    prompt.find_errors(n);
    for (int group = 0; group < layout.groups; ++group) {
      prompt.find_direction(group);
      a.fill_panel(a.second_panel, group, [&](int head, int c) {
        return prompt.folded(prompt.direction + (head - group * HEADS) * prompt.dim, c);
      });
      const T* const average = prompt.averages + group * HEADS * prompt.rows;
      passes.find_means(group, average);
      passes.weigh(group, a.weights(group), average, prompt.weighed);
      prompt.unfold(group, prompt.weighed, projected);
      __syncthreads();
    }
  }
}

}  // namespace mhicl::cuda
