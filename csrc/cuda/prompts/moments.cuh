#pragma once

#include "given.cuh"
#include "passes.cuh"

namespace mhicl::cuda {

template <class T>
__device__ __forceinline__ int valid_positions(const GivenPrompts<T>& p, int64_t prompt) {
  if (p.lengths == nullptr) return int(p.context_length);
  const int64_t length = p.lengths[prompt];
  return int(length < 0 ? 0 : length > p.context_length ? p.context_length : length);
}

template <class T>
__device__ __forceinline__ void fill_zeros(T* out, int64_t count) {
  if (out == nullptr) return;
  for (int64_t at = threadIdx.x; at < count; at += blockDim.x) out[at] = T(0);
}

// Body is called with the passes of each of the block's prompts that have positions, Empty with the others' numbers.
template <class A, class T, class Body, class Empty>
__device__ __forceinline__ void for_given_prompts(const GivenPrompts<T>& p, const AttendLayout& layout, const Body& body,
                                                  const Empty& empty) {
  const A a(layout);
  for (int64_t prompt = blockIdx.x; prompt < p.n_prompts; prompt += gridDim.x) {
    const int count = valid_positions(p, prompt);
    if (count == 0) {
      empty(prompt);
      continue;
    }
    const GivenTokens<A> fetch{a, p, prompt};
    const T* const projected = p.projected + prompt * p.heads * p.dim;
    const auto fill_panel = [&](int group) {
      a.fill_panel(a.panel, group, [&](int head, int c) { return projected[head * p.dim + c]; });
    };
    const Passes<A, GivenTokens<A>, decltype(fill_panel)> passes{a, fetch, fill_panel, count};
    passes.begin();
    body(prompt, passes);
    __syncthreads();
  }
}


template <class T, int HEADS, bool TF32>
__global__ void __launch_bounds__(kMostWarps * kWarp, kBlocksAtOnce<T>)
moments_kernel(MomentsCall<T> call, AttendLayout layout) {
  const GivenPrompts<T>& p = call.prompts;
  const int64_t row = p.heads * p.dim;
  for_given_prompts<Attend<T, HEADS, TF32>>(
      p, layout,
      [&](int64_t prompt, const auto& passes) {
        const auto& a = passes.a;
        T *const average = a.extra(), *const weighed = average + HEADS * layout.rows;
        const auto copy = [&](const T* from, int group, T* to) {
          if (to == nullptr) return;
          for (int at = a.thread; at < a.heads_of(group) * layout.rows; at += a.threads) {
            to[int64_t(group) * HEADS * p.dim + at] = from[at];
          }
        };
        for (int group = 0; group < layout.groups; ++group) {
          passes.attend(group, average);
          copy(average, group, call.moments == nullptr ? nullptr : call.moments + prompt * row);
          for (int64_t o = 0; o < call.directions; ++o) {
            a.fill_panel(a.second_panel, group, [&](int head, int c) {
              return call.direction_rows[(head * call.directions + o) * p.dim + c];
            });
            passes.find_means(group, average);
            passes.weigh(group, a.products, average, weighed);
            copy(weighed, group, call.jacobian + (prompt * call.directions + o) * row);
            __syncthreads();
          }
        }
        if (call.overlaps != nullptr) passes.find_overlaps(call.overlaps + prompt * p.heads * p.heads);
      },
      [&](int64_t prompt) {
        fill_zeros(call.moments == nullptr ? nullptr : call.moments + prompt * row, row);
        fill_zeros(call.overlaps == nullptr ? nullptr : call.overlaps + prompt * p.heads * p.heads, p.heads * p.heads);
        fill_zeros(call.jacobian == nullptr ? nullptr : call.jacobian + prompt * call.directions * row,
                   call.directions * row);
      });
}

// ∂z_l = Σ_h p_lh ∂c_h + ∂s_lh r_h for the heads of a group, added to what other groups left. Panels hold r and ∂c.
template <class A, class T>
__device__ __forceinline__ void add_context_gradient(const A& a, int group, const T* products, int count, T* out) {
  constexpr int HEADS = A::HEADS;
  const AttendLayout& layout = a.layout;
  const T* const weights = a.weights(group);
  for (int first = 0; first < layout.rows; first += kWarp) {
    const int column = first + a.lane, readable = min(column, layout.rows - 1);
    T of_weight[HEADS], of_product[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      const int head = group * HEADS + h;
      const bool present = h < a.heads_of(group);
      const T r = a.panel[h * layout.panel_stride + readable], g = a.second_panel[h * layout.panel_stride + readable];
      of_product[h] = present ? r : T(0);
      of_weight[h] = present ? a.inverses[head] * std::fma(-a.corrections[head], r, g) : T(0);
    }
    for (int l = 4 * a.warp; l < count; l += 4 * layout.warps) {
      T sum[4] = {};
#pragma unroll
      for (int h = 0; h < HEADS; ++h) {
        const Four<T> weight = load_four(weights + h * layout.table_stride + l);
        const Four<T> product = load_four(products + h * layout.table_stride + l);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[i] = std::fma(weight.x[i], of_weight[h], std::fma(product.x[i], of_product[h], sum[i]));
        }
      }
      if (column < layout.rows) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (l + i < count) {
            T& entry = out[int64_t(l + i) * layout.rows + column];
            entry = group == 0 ? sum[i] : entry + sum[i];
          }
        }
      }
    }
  }
  __syncthreads();
}

template <class T, int HEADS, bool TF32>
__global__ void __launch_bounds__(kMostWarps * kWarp, kBlocksAtOnce<T>)
moments_gradient_kernel(MomentsGradientCall<T> call, AttendLayout layout) {
  const GivenPrompts<T>& p = call.prompts;
  const int64_t row = p.heads * p.dim, size = p.context_length * p.dim;
  for_given_prompts<Attend<T, HEADS, TF32>>(
      p, layout,
      [&](int64_t prompt, const auto& passes) {
        const auto& a = passes.a;
        T *const average = a.extra(), *const weighed = average + HEADS * layout.rows;
        T* const overlaps = weighed + HEADS * layout.rows;
        const T* const grad_moments = call.grad_moments + prompt * row;
        const T* const overlap_weights =
            call.overlap_weights == nullptr ? nullptr : call.overlap_weights + prompt * p.heads * p.heads;
        T* const grad_context = call.grad_context == nullptr ? nullptr : call.grad_context + prompt * size;
        // With overlaps all heads attend before the first is differentiated.
        for (int round = overlap_weights == nullptr ? 1 : 0; round < 2; ++round) {
          if (round == 1 && overlap_weights != nullptr) passes.find_overlaps(overlaps);
          for (int group = 0; group < layout.groups; ++group) {
            passes.attend(group, average);
            if (round == 0) continue;
            a.fill_panel(a.second_panel, group, [&](int head, int c) { return grad_moments[head * p.dim + c]; });
            passes.find_means(group, average, overlap_weights, overlaps);
            passes.weigh(group, a.products, average, weighed, overlap_weights, grad_context != nullptr,
                         [&](int first, int here) {
                           passes.fill_panel(group);
                           add_context_gradient(a, group, a.products, here, grad_context + int64_t(first) * p.dim);
                         });
            if (call.grad_projected == nullptr) continue;
            T* const to = call.grad_projected + prompt * row + int64_t(group) * HEADS * p.dim;
            for (int at = a.thread; at < a.heads_of(group) * layout.rows; at += a.threads) to[at] = weighed[at];
          }
        }
        fill_zeros(grad_context == nullptr ? nullptr : grad_context + passes.count * p.dim, size - passes.count * p.dim);
      },
      [&](int64_t prompt) {
        fill_zeros(call.grad_projected == nullptr ? nullptr : call.grad_projected + prompt * row, row);
        fill_zeros(call.grad_context == nullptr ? nullptr : call.grad_context + prompt * size, size);
      });
}

}  // namespace mhicl::cuda
