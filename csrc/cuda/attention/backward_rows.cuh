// Attention's backward pass by rows: a block has some rows of a problem and walks over the keys, for the gradients of
// queries and logits, and each softmax's Σ_l w_l ∂w_l − ∂lse. If the block has all the problem's rows, also for those of
// keys and values, which then are complete.
#pragma once

#include "backward.cuh"

namespace mhicl::cuda {

template <class Tile>
class BackwardRows {
 public:
  using T = typename Tile::T;
  using Memory = BackwardMemory<Tile, false>;

  __device__ __forceinline__ BackwardRows(const BackwardCall<T>& call, const Memory& memory, int64_t index)
      : call_(call),
        o_(call.params),
        p_(call.params.attention),
        memory_(memory),
        problem_(p_, quotient(index, call.grid.own_blocks)),
        block_(p_, problem_, (index - problem_.index * call.grid.own_blocks) * Tile::own_here(), Tile::own_here()),
        first_column_(int64_t{blockIdx.y} * Tile::run) {}

  __device__ __forceinline__ void run() {
    block_.fill(p_, problem_, memory_.rows, Tile::own_here());
    start();
    __syncthreads();
    const bool wants_gradients = wants_keys() || wants_values() || wants_queries() || o_.grad_logits != nullptr;
    sums_means_apart_ = softmax() && wants_logits() && (block_.seen_by_any > kOthers || !wants_gradients);
    if (sums_means_apart_) {
      walk(true);
      finish_means();
    }
    if (wants_gradients) walk(false);
    finish();
    __syncthreads();  // before other rows take the place of these
  }

 private:
  __device__ __forceinline__ bool softmax() const { return p_.activation == Activation::softmax; }
  __device__ __forceinline__ bool wants_queries() const {
    return o_.grad_query.data != nullptr && first_column_ < p_.dim;
  }
  __device__ __forceinline__ bool wants_keys() const { return o_.grad_key.data != nullptr && first_column_ < p_.dim; }
  __device__ __forceinline__ bool wants_values() const {
    return o_.grad_value.data != nullptr && first_column_ < p_.value_dim;
  }
  __device__ __forceinline__ bool wants_logits() const {
    return wants_queries() || wants_keys() || (blockIdx.y == 0 && (o_.grad_logits != nullptr || o_.means != nullptr));
  }

  __device__ __forceinline__ int64_t row_index(int i) const {
    const int r = Tile::own_row(i);
    return problem_.first_row(p_) + block_.first + (r < block_.count ? r : block_.count - 1);
  }

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) {
      shifts_[i] = inverses_[i] = means_[i] = T(0);
      if (softmax()) {
        const T sum = o_.sums[row_index(i)];
        if (sum != T(0)) {
          shifts_[i] = o_.maxima[row_index(i)];
          inverses_[i] = T(1) / sum;
        }
      }
#pragma unroll
      for (int n = 0; n < Tile::columns; ++n) sums_[i][n] = T(0);
    }
  }

  // Over all keys, for the means alone or for the gradients.
  __device__ __forceinline__ void walk(bool for_means) {
#pragma unroll 1
    for (int64_t first = 0; first < block_.seen_by_any; first += kOthers) {
      const int count = int(least(kOthers, block_.seen_by_any - first));
      Pairs<Tile> w, g;
      const Seen seen = weigh(first, count, w);
      if (wants_logits()) {
        differentiate_weights(first, count, g);
        if (for_means || (softmax() && !sums_means_apart_)) add_to_means(seen, w, g);
        if (!for_means && softmax() && !sums_means_apart_) finish_means();
      }
      if (!for_means) add_gradients(first, count, seen, w, g);
    }
  }

  __device__ __forceinline__ int64_t query_row(int r) const { return memory_.rows[r].offset(problem_, p_.query); }
  __device__ __forceinline__ int64_t grad_out_row(int r) const { return memory_.rows[r].offset(problem_, o_.grad_out); }
  __device__ __forceinline__ int64_t key_row(int64_t l) const { return problem_.key_offset(p_.key) + l * p_.key.row; }
  __device__ __forceinline__ int64_t value_row(int64_t l) const {
    return problem_.key_offset(p_.value) + l * p_.value.row;
  }

  __device__ __forceinline__ Seen weigh(int64_t first, int count, Pairs<Tile>& w) const {
    multiply<Tile>(p_.storage, call_.query, [&](int r) { return query_row(r); }, block_.count, first > 0, memory_.own,
                   call_.key, [&](int l) { return key_row(first + l); }, count, memory_.others, w);
    const Seen seen = make_logits<Tile, false>(p_, memory_.rows, first, count, memory_.table, w);
    const auto probability = [&](int i, int, T s) { return std::exp(s - shifts_[i]) * inverses_[i]; };
    make_weights<Tile>(p_.activation, seen, probability, w);
    return seen;
  }

  __device__ __forceinline__ void differentiate_weights(int64_t first, int count, Pairs<Tile>& g) const {
    multiply<Tile>(p_.storage, call_.grad_out, [&](int r) { return grad_out_row(r); }, block_.count, first > 0,
             memory_.own_too, call_.value, [&](int l) { return value_row(first + l); }, count, memory_.others_too, g);
    add_grad_weights<Tile, false>(call_, problem_, memory_.rows, first, count, memory_.table, g);
  }

  __device__ __forceinline__ void add_to_means(Seen seen, const Pairs<Tile>& w, const Pairs<Tile>& g) {
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::others_mine; ++j) {
        if (sees<Tile>(seen, i, j)) means_[i] = std::fma(w[i][j], g[i][j], means_[i]);
      }
    }
  }

  // ∂lse/∂s_l = w_l, so −∂lse adds to the mean.
  __device__ __forceinline__ void finish_means() {
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) {
      means_[i] = Tile::sum_across(means_[i]);
      if (o_.grad_lse != nullptr) means_[i] -= o_.grad_lse[row_index(i)];
    }
  }

  __device__ __forceinline__ void add_gradients(int64_t first, int count, Seen seen, const Pairs<Tile>& w,
                                                Pairs<Tile>& g) {
    if (wants_values()) {
      if (!wants_logits()) bring_grad_out(first);
      bring_back<false>(p_.storage, call_.grad_out, first_column_, block_.count, [&](int r) { return grad_out_row(r); },
                 memory_.own_too);
      write_table<Tile>(memory_.table, w);
      __syncthreads();
      write_sums_over_rows(first, count, call_.grad_out, memory_.own_too, T(1), o_.grad_value, call_.wide_value);
      __syncthreads();
    }
    if (!wants_logits()) return;
    make_logit_gradients<Tile>(p_.activation, seen, [&](int i, int) { return means_[i]; }, w, g);
    write_table<Tile>(memory_.table, g);
    if (o_.grad_logits != nullptr && blockIdx.y == 0) write_grad_logits(first, count);
    if (wants_queries()) {
      const auto key_at = [&](int l) { return key_row(first + l); };
      bring_back<true>(p_.storage, call_.key, first_column_, count, key_at, memory_.others);
      __syncwarp();
      const bool may_hide = p_.mask_kind != MaskKind::none || first + count > block_.seen_by_all;
      add_weighted<Tile>(may_hide, memory_.table, memory_.others, call_.key.stride, count,
                         run_columns<T>(call_.key, first_column_), sums_);
    }
    if (wants_keys()) {
      const auto query_at = [&](int r) { return query_row(r); };
      bring_back<false>(p_.storage, call_.query, first_column_, block_.count, query_at, memory_.own);
      __syncthreads();
      write_sums_over_rows(first, count, call_.query, memory_.own, p_.scale, o_.grad_key, call_.wide_key);
    }
    __syncthreads();  // before the table is written again
  }

  // Where nothing else has brought the cotangents.
  __device__ __forceinline__ void bring_grad_out(int64_t first) const {
    if (first > 0) return;
    bring<false>(call_.grad_out, p_.storage, first_column_, block_.count, [&](int r) { return grad_out_row(r); },
          memory_.own_too);
    commit_copies();
    wait_for_copies<0>();
  }

  __device__ __forceinline__ void write_grad_logits(int64_t first, int count) const {
    for_pairs<Tile>([&](int r, int l, int at) {
      if (r >= block_.count || l >= count) return;
      o_.grad_logits[(problem_.first_row(p_) + block_.first + r) * p_.keys + first + l] = memory_.table[at] + T(0);
    });
  }

  // tableᵀ · rows for the keys of the tile.
  __device__ __forceinline__ void write_sums_over_rows(int64_t first, int count, const Source& source, const T* rows,
                                                       T factor, const Operand<void*>& to, bool wide) const {
    const int columns = run_columns<T>(source, first_column_);
#pragma unroll 1
    for (int l = Tile::first_turned(); l < count; l += Tile::turned_here()) {
      T sums[Tile::turned_mine][Tile::columns] = {};
      add_weighted_turned<Tile>(memory_.table + l, rows, source.stride, block_.count, columns, sums);
#pragma unroll
      for (int k = 0; k < Tile::turned_mine; ++k) {
        const int key = l + Tile::turned(k);
        if (key >= count) continue;
        const int64_t row = problem_.key_offset(to) + (first + key) * to.row;
        write_columns<Tile>(to, row, first_column_, source.columns, factor, sums[k], wide, p_.storage);
      }
    }
  }

  __device__ __forceinline__ void finish() const {
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) {
      const int r = Tile::own_row(i);
      if (r >= block_.count) continue;
      if (o_.means != nullptr && blockIdx.y == 0 && Tile::across() == 0) o_.means[row_index(i)] = means_[i];
      if (wants_queries()) {
        write_columns<Tile>(o_.grad_query, memory_.rows[r].offset(problem_, o_.grad_query), first_column_, p_.dim,
                            p_.scale, sums_[i], call_.wide_query, p_.storage);
      }
    }
    if (wants_keys()) write_zeros(o_.grad_key, p_.dim, call_.wide_key);
    if (wants_values()) write_zeros(o_.grad_value, p_.value_dim, call_.wide_value);
  }

  // For the keys that nobody sees.
  __device__ __forceinline__ void write_zeros(const Operand<void*>& to, int64_t columns, bool wide) const {
    const T zeros[Tile::columns] = {};
#pragma unroll 1
    for (int64_t l = block_.seen_by_any + Tile::down(); l < p_.keys; l += blockDim.x / Tile::kAcross) {
      write_columns<Tile>(to, problem_.key_offset(to) + l * to.row, first_column_, columns, T(1), zeros, wide,
                          p_.storage);
    }
  }

  const BackwardCall<T>& call_;
  const AttentionBackwardParams<T>& o_;
  const AttentionParams<T>& p_;
  const Memory& memory_;
  const Problem problem_;
  const RowBlock block_;
  const int64_t first_column_;
  bool sums_means_apart_ = false;
  T shifts_[Tile::mine], inverses_[Tile::mine], means_[Tile::mine];
  Sums<Tile> sums_;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::most_threads, Tile::least_blocks)
    attention_backward_rows_kernel(const BackwardCall<typename Tile::T> call) {
  const BackwardMemory<Tile, false> memory(call);
  for (int64_t index = blockIdx.x; index < call.grid.blocks; index += gridDim.x) {
    BackwardRows<Tile>(call, memory, index).run();
  }
}

}  // namespace mhicl::cuda
