// The attention of one prompt by one block, head group by head group. Tokens lie in shared memory, one after the other.
#pragma once

#include <cmath>

#include "../device.h"
#include "../lanes.cuh"
#include "layout.h"

namespace mhicl::cuda {

// So many blocks to a multiprocessor, at least; shared memory seldom has room for more of the largest. Left alone the compiler
// spills registers to have more.
template <class T>
inline constexpr int kBlocksAtOnce = std::is_same_v<T, float> ? 3 : 2;

// Every function is called by all threads of the block, and leaves what it wrote ready to be read by all. TF32: products with
// tokens are made by the matrix units, of factors rounded to it; for float and 8 heads at once.
template <class Number, int HEADS_AT_ONCE, bool TF32>
struct Attend {
  using T = Number;
  static constexpr int HEADS = HEADS_AT_ONCE;
  static_assert(!TF32 || (std::is_same_v<T, float> && HEADS == 8));

  const AttendLayout& layout;
  T *tokens, *table, *products, *panel, *second_panel, *partial;
  T *maxima, *sums, *inverses, *factors, *means, *corrections;  // by head
  int lane, warp, thread, threads;

  __device__ __forceinline__ explicit Attend(const AttendLayout& layout)
      : layout(layout), lane(int(threadIdx.x) % kWarp), warp(int(threadIdx.x) / kWarp), thread(int(threadIdx.x)),
        threads(layout.warps * kWarp) {
    tokens = reinterpret_cast<T*>(shared_memory());
    table = tokens + layout.table;
    products = tokens + layout.products;
    panel = tokens + layout.panel;
    second_panel = panel + HEADS * layout.panel_stride;
    partial = tokens + layout.partial;
    maxima = tokens + layout.statistics;
    sums = maxima + layout.groups * HEADS;
    inverses = sums + layout.groups * HEADS;
    factors = inverses + layout.groups * HEADS;
    means = factors + layout.groups * HEADS;
    corrections = means + layout.groups * HEADS;
  }

  __device__ __forceinline__ T* extra() const { return tokens + layout.extra; }
  __device__ __forceinline__ int heads_of(int group) const { return min(HEADS, layout.heads - group * HEADS); }
  __device__ __forceinline__ T* weights(int group) const {
    return layout.table_rows == HEADS ? table : table + int64_t(group) * HEADS * layout.table_stride;
  }

  // Zeros in the tokens between `count` and the next multiple of 4, which products read with weight 0.
  __device__ __forceinline__ void pad_tokens(int count) const {
    const int end = (count + 3) / 4 * 4 * layout.token_stride;
    for (int at = count * layout.token_stride + thread; at < end; at += threads) tokens[at] = T(0);
  }

  // panel_h[c] = value(h, c), 0 for heads that the group lacks and between the rows and the stride.
  template <class Value>
  __device__ __forceinline__ void fill_panel(T* out, int group, const Value& value) const {
    const int here = heads_of(group);
    for (int at = thread; at < HEADS * layout.panel_stride; at += threads) {
      const int h = at / layout.panel_stride, c = at % layout.panel_stride;
      out[at] = h < here && c < layout.rows ? value(group * HEADS + h, c) : T(0);
    }
    __syncthreads();
  }

  // use(h, l, panel_h · token_l) for the heads of a group and `count` tokens.
  template <class Use>
  __device__ __forceinline__ void for_products(const T* by, int count, const Use& use) const {
    for (int first = warp * kTokens * kWarp; first < count; first += layout.warps * kTokens * kWarp) {
      if constexpr (TF32) {
        products_of_tf32(by, first, count, use);
      } else {
        products_of(by, first, count, use);
      }
    }
  }

  // weights(group)[h][l] = e^(logit − maximum) for this chunk, the maxima and sums over all chunks so far, and the factors
  // on what was added up before this one.
  __device__ __forceinline__ void softmax(int group, int count, bool first_chunk) const {
    const T nothing = -T(INFINITY);
    T* const rows = weights(group);
    for_products(panel, count, [&](int h, int l, T logit) { rows[h * layout.table_stride + l] = logit; });
    __syncthreads();
    for (int h = warp; h < HEADS; h += layout.warps) {
      const int head = group * HEADS + h;
      T* const row = rows + h * layout.table_stride;
      T top = first_chunk ? nothing : maxima[head];
      const T before = top;
      for (int l = lane; l < count; l += kWarp) top = std::fmax(top, row[l]);
      top = largest_of_lanes<kWarp>(top);
      T sum = 0;
      for (int l = lane; l < count; l += kWarp) {
        const T weight = std::exp(row[l] - top);
        row[l] = weight;
        sum += weight;
      }
      if (lane < (4 - count % 4) % 4) row[count + lane] = T(0);
      sum = sum_of_warp(sum);
      if (lane == 0) {
        const T factor = first_chunk ? T(0) : std::exp(before - top);
        factors[head] = factor;
        sums[head] = first_chunk ? sum : std::fma(sums[head], factor, sum);
        maxima[head] = top;
      }
    }
    __syncthreads();
  }

  // The same weights again, once the maxima are known.
  __device__ __forceinline__ void recompute_weights(int group, int count) const {
    T* const rows = weights(group);
    for_products(panel, count, [&](int h, int l, T logit) {
      rows[h * layout.table_stride + l] = std::exp(logit - maxima[group * HEADS + h]);
    });
    pad_table(rows, count);
    __syncthreads();
  }

  // out[h][l] = weight · (panel_h · token_l + added[h][l] − mean of h), with the second panel and normalised weights.
  // Nothing is added where `added` is null; `out` may be that table, or the table of weights.
  __device__ __forceinline__ void differentiate(int group, const T* added, T* out, int count) const {
    const T* const rows = weights(group);
    for_products(second_panel, count, [&](int h, int l, T product) {
      const int head = group * HEADS + h, at = h * layout.table_stride + l;
      if (added != nullptr) product += added[at];
      out[at] = rows[at] * inverses[head] * (product - means[head]);
    });
    pad_table(out, count);
    __syncthreads();
  }

  // out[h][l] = Σ_g by[h, g] p_lg for the heads h of a group, 0 for those that it lacks, from the weights of all heads g; `by` is (H, H).
  __device__ __forceinline__ void mix_weights(int group, const T* by, T* out, int count) const {
    for (int h = warp; h < HEADS; h += layout.warps) {
      const T* const row = by + int64_t(group * HEADS + h) * layout.heads;
      const int mixed = h < heads_of(group) ? layout.heads : 0;
      for (int l = lane; l < count; l += kWarp) {
        T sum = 0;
        for (int g = 0; g < mixed; ++g) {
          sum = std::fma(row[g] * inverses[g], table[g * layout.table_stride + l], sum);
        }
        out[h * layout.table_stride + l] = sum;
      }
    }
    __syncthreads();
  }

  // The sums of a table's rows: what rounding hid of the means.
  __device__ __forceinline__ void add_corrections(int group, const T* rows, int count, bool first_chunk) const {
    for (int h = warp; h < HEADS; h += layout.warps) {
      T sum = 0;
      for (int l = lane; l < count; l += kWarp) sum += rows[h * layout.table_stride + l];
      sum = sum_of_warp(sum);
      if (lane == 0) corrections[group * HEADS + h] = first_chunk ? sum : corrections[group * HEADS + h] + sum;
    }
    __syncthreads();
  }

  // finish(h, c, Σ_l row_h[l] token_l[c]) by one thread for each head of the group and each number of a token.
  template <class Finish>
  __device__ __forceinline__ void add_up(const T* rows, int group, int count, const Finish& finish) const {
    if constexpr (TF32) {
      add_up_tokens_tf32(rows, count);
    } else {
      add_up_tokens(rows, count);
    }
    __syncthreads();
    const int size = HEADS * layout.rows;
    for (int at = thread; at < heads_of(group) * layout.rows; at += threads) {
      T sum = partial[at];
      for (int w = 1; w < layout.warps; ++w) sum += partial[w * size + at];
      finish(at / layout.rows, at % layout.rows, sum);
    }
    __syncthreads();
  }

 private:
  static constexpr int kTokens = 2, kColumns = 2;

  __device__ __forceinline__ void pad_table(T* rows, int count) const {
    const int missing = (4 - count % 4) % 4;
    for (int at = thread; at < HEADS * missing; at += threads) {
      rows[at / missing * layout.table_stride + count + at % missing] = T(0);
    }
  }

  // A lane has kTokens tokens, 32 apart: each number read of the panel serves all of them.
  template <class Use>
  __device__ __forceinline__ void products_of(const T* by, int first, int count, const Use& use) const {
    const T* token[kTokens];
    T sum[HEADS][kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      token[t] = tokens + min(first + t * kWarp + lane, count - 1) * layout.token_stride;
#pragma unroll
      for (int h = 0; h < HEADS; ++h) sum[h][t] = T(0);
    }
    int c = 0;
    for (; c + 4 <= layout.rows; c += 4) {
      T x[kTokens][4];
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[t][i] = token[t][c + i];
      }
#pragma unroll
      for (int h = 0; h < HEADS; ++h) {
        const Four<T> row = load_four(by + h * layout.panel_stride + c);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int t = 0; t < kTokens; ++t) sum[h][t] = std::fma(row.x[i], x[t][i], sum[h][t]);
        }
      }
    }
    for (; c < layout.rows; ++c) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const T x = token[t][c];
#pragma unroll
        for (int h = 0; h < HEADS; ++h) sum[h][t] = std::fma(by[h * layout.panel_stride + c], x, sum[h][t]);
      }
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const int l = first + t * kWarp + lane;
      if (l < count) {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) use(h, l, sum[h][t]);
      }
    }
  }

  // Each warp's sums over its share of the tokens into `partial`. Lanes have kColumns numbers of a token each; those that a
  // token does not need take other tokens.
  __device__ __forceinline__ void add_up_tokens(const T* rows, int count) const {
    int width = kWarp;
    while (width > 1 && kColumns * width / 2 >= layout.rows) width /= 2;
    const int phases = kWarp / width, phase = lane / width;
    T* const out = partial + warp * HEADS * layout.rows;
    for (int first = 0; first < layout.rows; first += kColumns * width) {
      int column[kColumns];
      T sum[HEADS][kColumns];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        column[j] = first + j * width + lane % width;
#pragma unroll
        for (int h = 0; h < HEADS; ++h) sum[h][j] = T(0);
      }
      for (int l = 4 * (warp * phases + phase); l < count; l += 4 * phases * layout.warps) {
        T x[kColumns][4];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) x[j][i] = tokens[(l + i) * layout.token_stride + min(column[j], layout.rows - 1)];
        }
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
          const Four<T> weight = load_four(rows + h * layout.table_stride + l);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < kColumns; ++j) sum[h][j] = std::fma(weight.x[i], x[j][i], sum[h][j]);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
          for (int offset = width; offset < kWarp; offset *= 2) {
            sum[h][j] += __shfl_xor_sync(kAllLanes, sum[h][j], offset);
          }
          if (phase == 0 && column[j] < layout.rows) out[h * layout.rows + column[j]] = sum[h][j];
        }
      }
    }
  }

  // A lane's place in the fragments of a matrix product (device.h).
  __device__ __forceinline__ int fragment_row() const { return lane / 4; }
  __device__ __forceinline__ int fragment_column() const { return lane % 4; }

  // Logits (16 tokens × 8 heads) += tokens (16 × 8 numbers) · panelᵀ, for the warp's 4 times 16 tokens.
  template <class Use>
  __device__ __forceinline__ void products_of_tf32(const T* by, int first, int count, const Use& use) const {
    constexpr int tiles = kTokens * kWarp / 16;
    const int g = fragment_row(), t = fragment_column();
    float sum[tiles][4] = {};
    for (int c = t; c - t < layout.rows; c += 8) {
      const bool inside = c < layout.rows, next_inside = c + 4 < layout.rows;
      const T* const row = by + g * layout.panel_stride + c;
      const uint32_t b[2] = {to_tf32(inside ? row[0] : 0.0f), to_tf32(next_inside ? row[4] : 0.0f)};
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) {
        const T* const one = tokens + min(first + tile * 16 + g, count - 1) * layout.token_stride + c;
        const T* const other = tokens + min(first + tile * 16 + g + 8, count - 1) * layout.token_stride + c;
        const uint32_t a[4] = {to_tf32(inside ? one[0] : 0.0f), to_tf32(inside ? other[0] : 0.0f),
                               to_tf32(next_inside ? one[4] : 0.0f), to_tf32(next_inside ? other[4] : 0.0f)};
        multiply_add_tf32(sum[tile], a, b);
      }
    }
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int l = first + tile * 16 + g + i / 2 * 8;
        if (l < count) use(2 * t + i % 2, l, sum[tile][i]);
      }
    }
  }

  // Sums (16 numbers × 8 heads) += tokensᵀ (16 numbers × 8 tokens) · weights (8 tokens × 8 heads), 64 numbers at a time.
  __device__ __forceinline__ void add_up_tokens_tf32(const T* rows, int count) const {
    constexpr int tiles = 4;
    const int g = fragment_row(), t = fragment_column();
    T* const out = partial + warp * HEADS * layout.rows;
    for (int first = 0; first < layout.rows; first += 16 * tiles) {
      float sum[tiles][4] = {};
      for (int l = 8 * warp + t; l - t < count; l += 8 * layout.warps) {
        const bool inside = l < count, next_inside = l + 4 < count;
        const T* const row = rows + g * layout.table_stride + l;
        const uint32_t b[2] = {to_tf32(inside ? row[0] : 0.0f), to_tf32(next_inside ? row[4] : 0.0f)};
        const T* const one = tokens + (inside ? l : 0) * layout.token_stride;
        const T* const next = tokens + (next_inside ? l + 4 : 0) * layout.token_stride;
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile) {
          const int column = min(first + tile * 16 + g, layout.rows - 1), other = min(column + 8, layout.rows - 1);
          const uint32_t a[4] = {to_tf32(inside ? one[column] : 0.0f), to_tf32(inside ? one[other] : 0.0f),
                                 to_tf32(next_inside ? next[column] : 0.0f), to_tf32(next_inside ? next[other] : 0.0f)};
          multiply_add_tf32(sum[tile], a, b);
        }
      }
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = first + tile * 16 + g + i / 2 * 8;
          if (column < layout.rows) out[(2 * t + i % 2) * layout.rows + column] = sum[tile][i];
        }
      }
    }
  }
};

}  // namespace mhicl::cuda
