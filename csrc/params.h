// What the kernels are called with: plain sizes, strides and pointers. Sizes and strides count elements.
#pragma once

#include <cstdint>

namespace mhicl {

// How a context's elements are stored: as the kernel's own type, or as 16-bit floats that it widens.
enum class Storage { native, bfloat16, float16 };

// Rows of memory that will be needed soon: a product asks for them while it computes. Null data: none.
struct Ahead {
  const char* data = nullptr;
  int64_t rows = 0, stride = 0, row_bytes = 0;  // stride in bytes
};

// C (rows × cols) = A (rows × depth) · B (depth × cols), or C += A · B. B and C have contiguous rows.
// A[r, k] is a[k·a_stride + r] if unit_rows, otherwise a[r·a_stride + k].
template <class T>
struct GemmParams {
  int64_t rows, cols, depth;
  const T* a;
  int64_t a_stride;
  bool unit_rows;
  const T* b;
  int64_t b_stride;
  T* c;
  int64_t c_stride;
  bool accumulate;
  Ahead ahead[2] = {};
};

// N prompts, their attention logits s_lh = z_lᵀ KQ_h z_q and probabilities p_h = softmax_l s_lh.
//
// Heads are worked on in blocks of `width`, the smallest power of two that holds them all, at most a vector's lanes.
// The last block is filled up with zeros in packed_kq.
template <class T>
struct PromptParams {
  int64_t n_prompts, context_length, dim, heads;
  int64_t width, blocks;
  const void* context;  // (N, L, D)
  Storage storage;
  int64_t prompt_stride, position_stride, element_stride;
  const int64_t* lengths;  // (N) valid positions, or null: all L
  const T* query;          // (N, D)
  const T* packed_kq;      // (blocks, D, D, width): KQ[head, e, d] at [block, d, e, head in block]
};

// Moments c_h = Σ_l p_lh z_l, overlaps K_hg = Σ_l p_lh p_lg, and for given directions v_oh the derivatives of v_oh·c_h in
// the projected query r_h = KQ_h z_q, which are Cov_p(z) v_oh.
template <class T>
struct MomentsForwardParams {
  PromptParams<T> prompts;
  int64_t directions;          // O, or 0
  const T* packed_directions;  // (blocks, D, O, width), or null
  T* moments;                  // (N, H, D)
  T* overlaps;                 // (N, H, H), or null
  T* jacobian;                 // (N, O, H, D), or null
};

// The gradient of a function of moments and overlaps.
template <class T>
struct MomentsBackwardParams {
  PromptParams<T> prompts;
  const T* kq;             // (H, D, D)
  const T* grad_moments;   // (N, H, D)
  const T* grad_overlaps;  // (N, H, H), or null
  T* grad_context;         // (N, L, D), zero past each length, or null
  T* grad_query;           // (N, D), or null
};

// Works on prompts [begin, end).
template <class T>
using MomentsForward = void (*)(const MomentsForwardParams<T>& params, int64_t begin, int64_t end);

// As above; grad_kq (D, H, D) is this range's own sum Σ_n z_q[d] ∂r_h[e] at [d, h, e], or null.
template <class T>
using MomentsBackward = void (*)(const MomentsBackwardParams<T>& params, int64_t begin, int64_t end, T* grad_kq);

template <class T>
using Gemm = void (*)(const GemmParams<T>& params);

// Writes one vector to `sink`, at most 64 elements; returns the number of operations.
template <class T>
using FmaBurst = double (*)(int64_t rounds, T* sink);

}  // namespace mhicl
