// General attention, forward: a block has some rows of a problem and walks over the keys, with the maximum over those
// so far. Copies of the next keys and values are under way while it computes.
#pragma once

#include "weights.cuh"

namespace mhicl::cuda {

template <class Tile>
struct ForwardMemory {
  using T = typename Tile::T;
  Row* rows;
  T *query, *key, *value, *table;

  __device__ __forceinline__ explicit ForwardMemory(const ForwardCall<T>& call) {
    SharedMemory memory;
    rows = memory.take<Row>(Tile::own_here());
    query = memory.take<T>(Tile::own_here() * call.query.stride);
    key = memory.take<T>(kOthers * call.key.stride);
    value = memory.take<T>(kOthers * call.value.stride);
    table = memory.take<T>(Tile::own_here() * kTableStride<T>);
  }
  static int64_t bytes(const ForwardCall<T>& call, int threads) {
    const int64_t own = Tile::own(threads);
    const int64_t elements = own * (call.query.stride + kTableStride<T>) +
                             kOthers * (call.key.stride + call.value.stride);
    return own * int64_t(sizeof(Row)) + elements * int64_t(sizeof(T));
  }
};

// One block's rows and the state of a thread's part of them.
template <class Tile>
class Forward {
 public:
  using T = typename Tile::T;

  __device__ __forceinline__ Forward(const ForwardCall<T>& call, const ForwardMemory<Tile>& memory, int64_t index)
      : call_(call),
        p_(call.params.attention),
        memory_(memory),
        problem_(p_, quotient(index, call.grid.own_blocks)),
        block_(p_, problem_, (index - problem_.index * call.grid.own_blocks) * Tile::own_here(), Tile::own_here()),
        first_column_(int64_t{blockIdx.y} * Tile::run) {
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) {
      maxima_[i] = -T(INFINITY);
      totals_[i] = T(0);
#pragma unroll
      for (int n = 0; n < Tile::columns; ++n) sums_[i][n] = T(0);
    }
  }

  __device__ __forceinline__ void run() {
    block_.fill(p_, problem_, memory_.rows, Tile::own_here());
    __syncthreads();
    walk(false);
    finish();
    if (call_.params.weights != nullptr && blockIdx.y == 0) {
      walk(true);
      write_unseen_weights();
    }
    __syncthreads();  // before other rows take the place of these
  }

 private:
  __device__ __forceinline__ bool softmax() const { return p_.activation == Activation::softmax; }

  __device__ __forceinline__ int keys_from(int64_t first) const {
    return int(most(0, least(kOthers, block_.seen_by_any - first)));
  }

  __device__ __forceinline__ void bring_keys(int64_t first, int64_t first_column) const {
    if (first < block_.seen_by_any && (first == 0 || p_.dim > kRun<T>)) {
      const auto query_row = [&](int r) { return memory_.rows[r].offset(problem_, p_.query); };
      bring<false>(call_.query, p_.storage, first_column, block_.count, query_row, memory_.query);
    }
    const int64_t base = problem_.key_offset(p_.key) + first * p_.key.row;
    bring<true>(call_.key, p_.storage, first_column, keys_from(first), [&](int l) { return base + l * p_.key.row; },
          memory_.key);
    commit_copies();
  }

  __device__ __forceinline__ void bring_values(int64_t first) const {
    const int64_t base = problem_.key_offset(p_.value) + first * p_.value.row;
    const auto value_row = [&](int l) { return base + l * p_.value.row; };
    bring<true>(call_.value, p_.storage, first_column_, keys_from(first), value_row, memory_.value);
  }

  // Over all keys, for sums and maxima, or once more for the weights, now that those are known. Queries and keys come by
  // runs of columns, each of them asked for once the one before is done with.
  __device__ __forceinline__ void walk(bool for_weights) {
    if (block_.seen_by_any > 0) bring_keys(0, 0);
#pragma unroll 1
    for (int64_t first = 0; first < block_.seen_by_any; first += kOthers) {
      const int count = keys_from(first);
      if (!for_weights) bring_values(first);
      commit_copies();
      Pairs<Tile> s = {};
#pragma unroll 1
      for (int64_t column = 0; column == 0 || column < p_.dim; column += kRun<T>) {
        if (column == 0) wait_for_copies<1>();
        else wait_for_copies<0>();
        __syncthreads();
        add_products<Tile>(memory_.query, call_.query.stride, block_.count, memory_.key, call_.key.stride, count,
                           int(least(kRun<T>, p_.dim - column)), s);
        __syncthreads();
        const bool more = column + kRun<T> < p_.dim;
        bring_keys(more ? first : first + kOthers, more ? column + kRun<T> : 0);
      }
      const Seen seen = make_logits<Tile, false>(p_, memory_.rows, first, count, memory_.table, s);
      if (for_weights) write_weights(first, count, seen, s);
      else add_values(first, count, seen, s);
    }
  }

  __device__ __forceinline__ void add_values(int64_t first, int count, Seen seen, Pairs<Tile>& s) {
    weigh(seen, s);
    write_table<Tile>(memory_.table, s);
    wait_for_copies<1>();
    __syncthreads();
    const bool may_hide = p_.mask_kind != MaskKind::none || first + count > block_.seen_by_all;
    add_weighted<Tile>(may_hide, memory_.table, memory_.value, call_.value.stride, count, columns(), sums_);
    __syncthreads();
  }

  // Of the values' run, filled up.
  __device__ __forceinline__ int columns() const {
    return in_fours(least(kRun<T>, p_.value_dim - first_column_));
  }

  // Logits become what values are weighted with: for the softmax e^(s − maximum so far).
  __device__ __forceinline__ void weigh(Seen seen, Pairs<Tile>& s) {
    T shifts[Tile::mine];
    if (softmax()) {
#pragma unroll
      for (int i = 0; i < Tile::mine; ++i) shifts[i] = raise_maximum(i, seen, s[i]);
    }
    const auto exponential = [&](int i, int, T x) {
      const T e = std::exp(x - shifts[i]);
      totals_[i] += e;
      return e;
    };
    make_weights<Tile>(p_.activation, seen, exponential, s);
  }

  // Takes a tile's logits into a row's maximum and brings its sums to that; returns what logits are shifted by.
  __device__ __forceinline__ T raise_maximum(int i, Seen seen, const T (&s)[Tile::others_mine]) {
    T top = -T(INFINITY);
#pragma unroll
    for (int j = 0; j < Tile::others_mine; ++j) {
      if (sees<Tile>(seen, i, j)) top = std::fmax(top, s[j]);
    }
    top = std::fmax(maxima_[i], Tile::largest_across(top));
    const T shift = top == -T(INFINITY) ? T(0) : top, factor = std::exp(maxima_[i] - shift);
    maxima_[i] = top;
    totals_[i] *= factor;
#pragma unroll
    for (int n = 0; n < Tile::columns; ++n) sums_[i][n] *= factor;
    return shift;
  }

  __device__ __forceinline__ void finish() {
    const int64_t first_row = problem_.first_row(p_) + block_.first;
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) {
      const int r = Tile::own_row(i);
      T inverse = 1;
      if (softmax()) {
        totals_[i] = Tile::sum_across(totals_[i]);
        inverse = totals_[i] == T(0) ? T(0) : T(1) / totals_[i];
      }
      if (r < block_.count) {
        if (softmax() && Tile::across() == 0 && blockIdx.y == 0) write_stats(first_row + r, maxima_[i], totals_[i]);
        write_columns<Tile>(call_.params.out, memory_.rows[r].offset(problem_, call_.params.out), first_column_,
                            p_.value_dim, inverse, sums_[i], call_.wide_out, p_.storage);
      }
      if (maxima_[i] == -T(INFINITY)) maxima_[i] = T(0);  // the weights' shift and factor from here on
      totals_[i] = inverse;
    }
  }

  __device__ __forceinline__ void write_stats(int64_t row, T maximum, T total) const {
    if (call_.params.maxima != nullptr) {
      call_.params.maxima[row] = maximum;
      call_.params.sums[row] = total;
    }
    if (call_.params.lse != nullptr) call_.params.lse[row] = maximum + std::log(total);
  }

  __device__ __forceinline__ int64_t weights_row(int r) const {
    return (problem_.first_row(p_) + block_.first + r) * p_.keys;
  }

  __device__ __forceinline__ void write_weights(int64_t first, int count, Seen seen, Pairs<Tile>& s) const {
    const auto probability = [&](int i, int, T x) { return std::exp(x - maxima_[i]) * totals_[i]; };
    make_weights<Tile>(p_.activation, seen, probability, s);
    write_table<Tile>(memory_.table, s);
    for_pairs<Tile>([&](int r, int l, int at) {
      const T w = memory_.table[at] + T(0);
      if (r < block_.count && l < count) write(call_.params.weights, weights_row(r) + first + l, w, p_.storage);
    });
  }

  __device__ __forceinline__ void write_unseen_weights() const {
    for (int r = int(threadIdx.x) / kWarp; r < block_.count; r += int(blockDim.x) / kWarp) {
      for (int64_t l = block_.seen_by_any + int(threadIdx.x) % kWarp; l < p_.keys; l += kWarp) {
        write(call_.params.weights, weights_row(r) + l, T(0), p_.storage);
      }
    }
  }

  const ForwardCall<T>& call_;
  const AttentionParams<T>& p_;
  const ForwardMemory<Tile>& memory_;
  const Problem problem_;
  const RowBlock block_;
  const int64_t first_column_;
  T maxima_[Tile::mine], totals_[Tile::mine];
  Sums<Tile> sums_;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::most_threads, Tile::least_blocks)
    attention_forward_kernel(const ForwardCall<typename Tile::T> call) {
  const ForwardMemory<Tile> memory(call);
  for (int64_t index = blockIdx.x; index < call.grid.blocks; index += gridDim.x) {
    Forward<Tile>(call, memory, index).run();
  }
}

}  // namespace mhicl::cuda
