// A prompt's passes over its tokens, chunk by chunk where not all of them fit.
#pragma once

#include "attend.cuh"

namespace mhicl::cuda {

// fetch(first, count) brings tokens into shared memory; fill_panel(group) the panel that logits are products with.
template <class A, class Fetch, class FillPanel>
struct Passes {
  using T = typename A::T;
  static constexpr int HEADS = A::HEADS;

  const A& a;
  const Fetch& fetch;
  const FillPanel& fill_panel;
  int count;

  // What stays in shared memory comes once.
  __device__ __forceinline__ void begin() const {
    if (a.layout.resident) fetch(0, count);
  }

  template <class Body>
  __device__ __forceinline__ void for_chunks(const Body& body) const {
    for (int first = 0; first < count; first += a.layout.chunk) body(first, min(a.layout.chunk, count - first));
  }

  // average[h][c] = Σ_l p_lh token_l[c] for the heads of a group (HEADS, rows).
  __device__ __forceinline__ void attend(int group, T* average) const {
    const int rows = a.layout.rows;
    if (count == 0) return fill_zeros(average);
    fill_panel(group);
    for_chunks([&](int first, int here) {
      if (!a.layout.resident) fetch(first, here);
      a.softmax(group, here, first == 0);
      a.add_up(a.weights(group), group, here, [&](int h, int c, T sum) {
        T& entry = average[h * rows + c];
        entry = first == 0 ? sum : std::fma(entry, a.factors[group * HEADS + h], sum);
      });
    });
    if (a.thread < HEADS) a.inverses[group * HEADS + a.thread] = T(1) / a.sums[group * HEADS + a.thread];
    __syncthreads();
    for (int at = a.thread; at < a.heads_of(group) * rows; at += a.threads) {
      average[at] *= a.inverses[group * HEADS + at / rows];
    }
    __syncthreads();
  }

  // What sums over no tokens are.
  __device__ __forceinline__ void fill_zeros(T* table) const {
    for (int at = a.thread; at < HEADS * a.layout.rows; at += a.threads) table[at] = T(0);
    __syncthreads();
  }

  // The weights of a chunk's tokens: of the group or, where the table holds them, of all heads.
  __device__ __forceinline__ void restore(int group, int first, int here) const {
    if (a.layout.resident) return;
    fetch(first, here);
    const bool all = a.layout.table_rows > HEADS;
    for (int g = all ? 0 : group; g < (all ? a.layout.groups : group + 1); ++g) {
      fill_panel(g);
      a.recompute_weights(g, here);
    }
  }

  // The means of products with the second panel: mean_h = second_panel_h · average_h, and with overlaps K of all heads and
  // weights on them, symmetric (H, H), Σ_g overlap_weights_hg K_hg.
  __device__ __forceinline__ void find_means(int group, const T* average, const T* overlap_weights = nullptr,
                                             const T* overlaps = nullptr) const {
    const auto add_products = [&](const T* x, const T* y, int size, T sum) {
      for (int c = a.lane; c < size; c += kWarp) sum = std::fma(x[c], y[c], sum);
      return sum;
    };
    for (int h = a.warp; h < HEADS; h += a.layout.warps) {
      const int head = group * HEADS + h, heads = a.layout.heads;
      if (head >= heads) {
        if (a.lane == 0) a.means[head] = T(0);
        continue;
      }
      T sum = add_products(a.second_panel + h * a.layout.panel_stride, average + h * a.layout.rows, a.layout.rows, T(0));
      if (overlap_weights != nullptr) {
        sum = add_products(overlap_weights + head * heads, overlaps + head * heads, heads, sum);
      }
      sum = sum_of_warp(sum);
      if (a.lane == 0) a.means[head] = sum;
    }
    __syncthreads();
  }

  // weighed[h][c] = Σ_l ∂s_lh token_l[c] with ∂s = p (q − Σ p q), q_lh = second_panel_h · token_l +
  // Σ_g overlap_weights_hg p_lg, for given means, nearly Σ p q, and averages of the tokens. In one pass: with q′ = q − mean,
  // ∂s = p q′ − p Σ p q′. The table takes p q′; with weights on overlaps it must not be that of p. Then, if `again`,
  // use(first, here) for each chunk with its table, when the corrections Σ p q′ are known.
  template <class Use>
  __device__ __forceinline__ void weigh(int group, T* table, const T* average, T* weighed, const T* overlap_weights,
                                        bool again, const Use& use) const {
    if (count == 0) return fill_zeros(weighed);
    const int rows = a.layout.rows;
    for (int pass = 0; pass < (again ? 2 : 1); ++pass) {
      for_chunks([&](int first, int here) {
        if (pass == 0 || !a.layout.resident) {
          restore(group, first, here);
          if (overlap_weights != nullptr) a.mix_weights(group, overlap_weights, table, here);
          a.differentiate(group, overlap_weights == nullptr ? nullptr : table, table, here);
        }
        if (pass == 1) {
          use(first, here);
          return;
        }
        a.add_corrections(group, table, here, first == 0);
        a.add_up(table, group, here, [&](int h, int c, T sum) {
          T& entry = weighed[h * rows + c];
          entry = first == 0 ? sum : entry + sum;
        });
      });
    }
    for (int at = a.thread; at < a.heads_of(group) * rows; at += a.threads) {
      weighed[at] = std::fma(-a.corrections[group * HEADS + at / rows], average[at], weighed[at]);
    }
    __syncthreads();
  }
  __device__ __forceinline__ void weigh(int group, T* table, const T* average, T* weighed,
                                        const T* overlap_weights = nullptr) const {
    weigh(group, table, average, weighed, overlap_weights, false, [](int, int) {});
  }

  // overlaps[h][g] = Σ_l p_lh p_lg (H, H), from weights of all heads.
  __device__ __forceinline__ void find_overlaps(T* overlaps) const {
    const int heads = a.layout.heads;
    for_chunks([&](int first, int here) {
      restore(0, first, here);
      for (int at = a.thread; at < heads * heads; at += a.threads) {
        const int h = at / heads, g = at % heads;
        const T *one = a.table + h * a.layout.table_stride, *other = a.table + g * a.layout.table_stride;
        T sum = 0;
        for (int l = 0; l < here; l += 4) {
          const Four<T> p = load_four(one + l), q = load_four(other + l);
#pragma unroll
          for (int i = 0; i < 4; ++i) sum = std::fma(p.x[i], q.x[i], sum);
        }
        sum = first == 0 ? sum : overlaps[at] + sum;
        const bool last = first + here == count;
        overlaps[at] = last ? sum * a.inverses[h] * a.inverses[g] : sum;
      }
      __syncthreads();
    });
    if (count > 0) return;
    for (int at = a.thread; at < heads * heads; at += a.threads) overlaps[at] = T(0);
    __syncthreads();
  }
};

}  // namespace mhicl::cuda
