// What both kernels of attention's backward pass do on a tile. With weights w computed again from the logits
// s = scale · q kᵀ:
//   ∂v_l = Σ_r w_rl ∂o_r,  ∂w_rl = ∂o_r · v_l,  ∂s from ∂w below,
//   ∂q_r = scale Σ_l ∂s_rl k_l,  ∂k_l = scale Σ_r ∂s_rl q_r.
// The softmax's Σ_l w_l ∂w_l equals o · ∂o, but is summed from the very products it is subtracted from: where a row has
// almost all its weight on one key, they cancel, and what is left must not be the rounding of o · ∂o.
#pragma once

#include "weights.cuh"

namespace mhicl::cuda {

// A block's own rows or keys, and the others; each with what both of its tensors hold: first query or key, then the
// cotangent of the output or the value.
template <class Tile, bool OWN_KEYS>
struct BackwardMemory {
  using T = typename Tile::T;
  Row* rows;
  T *shifts, *inverses, *means;  // of the rows' softmaxes, where rows are the others
  T *own, *own_too, *others, *others_too, *table;

  __device__ __forceinline__ explicit BackwardMemory(const BackwardCall<T>& call) {
    const Source& own_source = OWN_KEYS ? call.key : call.query;
    const Source& own_source_too = OWN_KEYS ? call.value : call.grad_out;
    SharedMemory memory;
    rows = memory.take<Row>(OWN_KEYS ? kOthers : Tile::own_here());
    shifts = memory.take<T>(kNumbers);
    inverses = memory.take<T>(kNumbers);
    means = memory.take<T>(kNumbers);
    own = memory.take<T>(Tile::own_here() * own_source.stride);
    own_too = memory.take<T>(Tile::own_here() * own_source_too.stride);
    others = memory.take<T>(kOthers * own_source.stride);
    others_too = memory.take<T>(kOthers * own_source_too.stride);
    table = memory.take<T>(Tile::own_here() * kTableStride<T>);
  }
  static int64_t bytes(const BackwardCall<T>& call, int threads) {
    const int64_t own = Tile::own(threads), strides = call.key.stride + call.value.stride;
    const int64_t elements = 3 * kNumbers + (own + kOthers) * strides + own * kTableStride<T>;
    return (OWN_KEYS ? kOthers : own) * int64_t(sizeof(Row)) + elements * int64_t(sizeof(T));
  }

 private:
  static constexpr int kNumbers = OWN_KEYS ? kOthers : 0;
};

// products = own · othersᵀ, over runs of columns that are brought one after another. own_row and others_row tell where
// rows begin. What a block keeps is not brought again unless there are several runs.
template <class Tile, class T, class OwnRow, class OthersRow>
__device__ __forceinline__ void multiply(Storage storage, const Source& own, const OwnRow& own_row, int own_count,
                                         bool own_is_there, T* own_memory, const Source& others,
                                         const OthersRow& others_row, int others_count, T* others_memory,
                                         Pairs<Tile>& products) {
#pragma unroll
  for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::others_mine; ++j) products[i][j] = T(0);
  }
#pragma unroll 1
  for (int64_t column = 0; column == 0 || column < own.columns; column += kRun<T>) {
    __syncthreads();  // the last tile's readers are done
    if (!own_is_there || own.columns > kRun<T>) bring<false>(own, storage, column, own_count, own_row, own_memory);
    bring<true>(others, storage, column, others_count, others_row, others_memory);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    add_products<Tile>(own_memory, own.stride, own_count, others_memory, others.stride, others_count,
                       int(least(kRun<T>, own.columns - column)), products);
  }
}

// Sees to it that memory holds the run from first_column on, of the own (not FILL) or the others (FILL), after `multiply`
// has been through all of them.
template <bool FILL, class T, class RowAt>
__device__ __forceinline__ void bring_back(Storage storage, const Source& source, int64_t first_column, int count,
                                           const RowAt& row, T* memory) {
  if (source.columns <= kRun<T>) return;
  __syncthreads();
  bring<FILL>(source, storage, first_column, count, row, memory);
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
}

// Of the run from first_column on, filled up.
template <class T>
__device__ __forceinline__ int run_columns(const Source& source, int64_t first_column) {
  return in_fours(least(kRun<T>, source.columns - first_column));
}

// g += ∂w that is given from outside, where a pair sees each other.
template <class Tile, bool OWN_KEYS, class T>
__device__ __forceinline__ void add_grad_weights(const BackwardCall<T>& call, const Problem& problem, const Row* rows,
                                                 int64_t first_key, int keys, T* table, Pairs<Tile>& g) {
  const Operand<const void*>& from = call.params.grad_weights;
  if (from.data == nullptr) return;
  for_pairs<Tile>([&](int own, int other, int at) {
    const Row& row = rows[OWN_KEYS ? other : own];
    const int key = OWN_KEYS ? own : other;
    table[at] = T(0);
    if (key < seen_in_tile(row, first_key, keys)) {
      const int64_t element = row.offset(problem, from) + (first_key + key) * from.column;
      table[at] = read<T>(from.data, element, call.params.attention.storage);
    }
  });
#pragma unroll
  for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::others_mine; ++j) g[i][j] += table[table_at<Tile>(i, j)];
  }
}

// ∂w becomes ∂s: softmax w (∂w − mean), linear ∂w, relu ∂w where w > 0; −0 where hidden and nowhere else.
template <class Tile, class Mean>
__device__ __forceinline__ void make_logit_gradients(Activation activation, Seen seen, const Mean& mean,
                                                     const Pairs<Tile>& w, Pairs<Tile>& g) {
  using T = typename Tile::T;
#pragma unroll
  for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::others_mine; ++j) {
      if (activation == Activation::softmax) g[i][j] = w[i][j] * (g[i][j] - mean(i, j));
      if (activation == Activation::relu && w[i][j] <= T(0)) g[i][j] = T(0);
      g[i][j] = sees<Tile>(seen, i, j) ? g[i][j] + T(0) : -T(0);
    }
  }
}

}  // namespace mhicl::cuda
