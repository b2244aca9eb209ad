// What the kernels of general attention are called with: plain sizes, strides and pointers, counted in elements.
#pragma once

#include <cstdint>

#include "params.h"

namespace mhicl {

// What becomes of a row's logits s: softmax over the keys it sees, s itself, or max(s, 0).
enum class Activation { softmax, linear, relu };

enum class MaskKind { none, boolean, additive };

// A tensor (batch, heads, rows, columns) in place.
template <class Pointer>
struct Operand {
  Pointer data;
  int64_t batch, head, row, column;  // strides
};

// How much of a problem is worked on together: so many rows, a multiple of the lanes, and so many keys.
struct Blocking {
  int64_t rows, keys;
};

inline int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// out[b, h, i] = Σ_l w_il value[b, h / group, l], w_i = activation(scale · query[b, h, i] · key[b, h / group, l] + mask).
//
// The query heads of a group share a key head. A problem is one key head of one batch entry, with the group · rows rows
// that look at it.
template <class T>
struct AttentionParams {
  int64_t batch, key_heads, group, rows, keys, dim, value_dim;
  Storage storage;  // of everything that has void pointers
  Operand<const void*> query, key, value;
  MaskKind mask_kind;
  Operand<const void*> mask;     // broadcast by zero strides; boolean: bytes, 0 hides
  const int64_t* key_lengths;    // (B) valid keys, or null: all
  T scale;
  bool causal;                   // row i sees keys 0 … i
  Activation activation;
  Blocking blocking;
};

// The columns of outputs are adjacent. What is a plain pointer is contiguous, (B, Hq, Lq, …).
template <class T>
struct AttentionForwardParams {
  AttentionParams<T> attention;
  Operand<void*> out;
  T* maxima;      // (B, Hq, Lq): of each row's logits, −∞ where it sees no key; or null
  T* sums;        // (B, Hq, Lq): Σ_l e^(s_l − max), or null
  T* lse;         // (B, Hq, Lq): log-sum-exp of each row's logits, or null
  void* weights;  // (B, Hq, Lq, L), or null
};

template <class T>
struct AttentionBackwardParams {
  AttentionParams<T> attention;
  Operand<const void*> grad_out;
  Operand<const void*> grad_weights;  // null data: none
  const T* grad_lse;  // (B, Hq, Lq), or null
  const T* maxima;    // the forward pass's
  const T* sums;
  Operand<void*> grad_query, grad_key, grad_value;  // null data where nobody wants them
  T* grad_logits;  // (B, Hq, Lq, L), written where a block of rows sees keys
  T* means;              // (B, Hq, Lq): Σ_l w_l ∂w_l − ∂lse of each row of the softmax, to be written; or null
  const T* known_means;  // the same, known already; or null
};

// Which part of the work to do: problems [first_problem, last_problem), and of each the rows of blocks
// [first_rows, last_rows) and the keys of blocks [first_keys, last_keys).
struct AttentionRange {
  int64_t first_problem, last_problem, first_rows, last_rows, first_keys, last_keys;
};

template <class T>
struct AttentionKernels {
  // The best blocking for so many keys.
  Blocking (*forward_blocking)(int64_t keys);
  Blocking (*backward_blocking)(int64_t keys);
  // Whether a problem's rows are so few that they are worked on together, and cuts of rows and keys mean nothing.
  bool (*few_rows_pay)(const AttentionParams<T>& params);
  // Needs all keys.
  void (*forward)(const AttentionForwardParams<T>& params, const AttentionRange& range);
  // Gradients of keys and values need all rows, gradients of queries all keys.
  void (*backward)(const AttentionBackwardParams<T>& params, const AttentionRange& range);
};

}  // namespace mhicl
