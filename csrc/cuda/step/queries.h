// The queries of a step: drawn, projected, and the gradient of their projections.
#pragma once

#include "../../step_params.h"
#include "../gemm.h"

namespace mhicl::cuda {

// Queries ξ_q (n, d) of prompts [first, first + count), and projected ones r or their gradients (n, row).
template <class T>
struct QueryChunk {
  PromptRange range;
  const uint32_t* steps_done;
  int64_t first, count, dim_x, row;
  T* queries;
  T* projected;
};

template <class T>
cudaError_t draw_queries(const QueryChunk<T>& chunk, cudaStream_t stream);

// r = ξ_q · projections (d, row).
template <class T>
GemmParams<T> projection(const QueryChunk<T>& chunk, const T* projections, bool tf32) {
  return {.batch = 1,
          .rows = chunk.count,
          .cols = chunk.row,
          .depth = chunk.dim_x,
          .a = {chunk.queries, chunk.dim_x, 1, 0},
          .b = {projections, chunk.row, 1, 0},
          .c = {chunk.projected, chunk.row, 1, 0},
          .alpha = T(1),
          .accumulate = false,
          .tf32 = tf32};
}

// Σ_n left[n, i] right[n, j] (left_size, right_size), for rows of prompts.
template <class T>
GemmParams<T> sum_over_prompts(int64_t count, const T* left, int64_t left_size, const T* right, int64_t right_size,
                               int64_t right_stride, bool tf32) {
  return {.batch = 1,
          .rows = left_size,
          .cols = right_size,
          .depth = count,
          .a = {left, 1, left_size, 0},
          .b = {right, right_stride, 1, 0},
          .c = {},
          .alpha = T(1),
          .accumulate = false,
          .tf32 = tf32};
}

}  // namespace mhicl::cuda
