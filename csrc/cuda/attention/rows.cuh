// Which problem and rows a block works on, and what its rows see.
#pragma once

#include "../device.h"
#include "call.h"
#include "elements.cuh"

namespace mhicl::cuda {

__device__ __forceinline__ int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ __forceinline__ int64_t most(int64_t a, int64_t b) { return a < b ? b : a; }

// a / b for numbers that are not negative; of 32 bits where that suffices, which is several times faster.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

// One key head of one batch entry, with the group · rows rows that look at it.
struct Problem {
  int64_t index, batch, head;
  int64_t keys;  // that are valid

  template <class T>
  __device__ __forceinline__ Problem(const AttentionParams<T>& p, int64_t index)
      : index(index), batch(quotient(index, p.key_heads)), head(index - batch * p.key_heads), keys(p.keys) {
    if (p.key_lengths != nullptr) keys = most(0, least(keys, p.key_lengths[batch]));
  }

  // Where key 0 begins.
  template <class Pointer>
  __device__ __forceinline__ int64_t key_offset(const Operand<Pointer>& x) const {
    return batch * x.batch + head * x.head;
  }
  // The first of the problem's rows in what has (B, Hq, Lq, …) contiguous.
  template <class T>
  __device__ __forceinline__ int64_t first_row(const AttentionParams<T>& p) const {
    return index * p.group * p.rows;
  }
};

// A row of a block, in shared memory.
struct Row {
  int64_t head, position;  // in (batch, heads, rows, …)
  int64_t mask;            // where the mask's row begins
  int64_t seen;            // keys [0, seen) may be seen by it

  template <class Pointer>
  __device__ __forceinline__ int64_t offset(const Problem& problem, const Operand<Pointer>& x) const {
    return problem.batch * x.batch + head * x.head + position * x.row;
  }
};

// Rows [first, first + count) of a problem.
struct RowBlock {
  int64_t first;
  int count;
  int64_t seen_by_all, seen_by_any;  // keys [0, …) by the causal rule and the lengths

  template <class T>
  __device__ __forceinline__ RowBlock(const AttentionParams<T>& p, const Problem& problem, int64_t first, int size)
      : first(first),
        count(int(least(size, p.group * p.rows - first))),
        seen_by_all(problem.keys),
        seen_by_any(problem.keys) {
    if (!p.causal) return;
    const int64_t position = first - quotient(first, p.rows) * p.rows;
    const bool wraps = position + count > p.rows;  // on to the next head's rows
    seen_by_all = least(seen_by_all, wraps ? 1 : position + 1);
    seen_by_any = least(seen_by_any, wraps ? p.rows : position + count);
  }

  template <class T>
  __device__ __forceinline__ void fill(const AttentionParams<T>& p, const Problem& problem, Row* rows, int size) const {
    for (int r = int(threadIdx.x); r < size; r += int(blockDim.x)) {
      Row row = {0, 0, 0, 0};
      if (r < count) {
        const int64_t head = quotient(first + r, p.rows);
        row.head = problem.head * p.group + head;
        row.position = first + r - head * p.rows;
        row.mask = row.offset(problem, p.mask);
        row.seen = p.causal ? least(problem.keys, row.position + 1) : problem.keys;
      }
      rows[r] = row;
    }
  }
};

// Of the keys [first, first + count) of a tile those below this are seen by a row, but for what a mask hides.
__device__ __forceinline__ int seen_in_tile(const Row& row, int64_t first, int count) {
  return int(most(0, least(count, row.seen - first)));
}

// What a mask adds to a logit: −∞ where it hides the key, never −0.
template <class T>
__device__ __forceinline__ T mask_bias(const AttentionParams<T>& p, int64_t row, int64_t key) {
  const int64_t at = row + key * p.mask.column;
  if (p.mask_kind == MaskKind::additive) return read<T>(p.mask.data, at, p.storage) + T(0);
  return static_cast<const uint8_t*>(p.mask.data)[at] != 0 ? T(0) : -T(INFINITY);
}

}  // namespace mhicl::cuda
