// Attention's backward pass by keys: a block has some keys of a problem and walks over the rows that look at it, whose
// Σ_l w_l ∂w_l − ∂lse is known, for the gradients of keys and values.
#pragma once

#include "backward.cuh"

namespace mhicl::cuda {

template <class Tile>
class BackwardKeys {
 public:
  using T = typename Tile::T;
  using Memory = BackwardMemory<Tile, true>;

  __device__ __forceinline__ BackwardKeys(const BackwardCall<T>& call, const Memory& memory, int64_t index)
      : call_(call),
        o_(call.params),
        p_(call.params.attention),
        memory_(memory),
        problem_(p_, quotient(index, call.grid.own_blocks)),
        first_((index - problem_.index * call.grid.own_blocks) * Tile::own_here()),
        count_(int(least(Tile::own_here(), p_.keys - first_))),
        valid_(int(most(0, least(count_, problem_.keys - first_)))),
        first_column_(int64_t{blockIdx.y} * Tile::run) {
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
      for (int n = 0; n < Tile::columns; ++n) key_sums_[i][n] = value_sums_[i][n] = T(0);
    }
  }

  __device__ __forceinline__ void run() {
    bool own_is_there = false;
#pragma unroll 1
    for (int64_t first = 0; valid_ > 0 && first < p_.group * p_.rows; first += kOthers) {
      const RowBlock block(p_, problem_, first, kOthers);
      if (block.seen_by_any <= first_) continue;
      __syncthreads();  // the rows before have been read
      block.fill(p_, problem_, memory_.rows, kOthers);
      fill_numbers(block);
      add_gradients(block, own_is_there);
      own_is_there = true;
    }
    finish();
    __syncthreads();  // before other keys take the place of these
  }

 private:
  __device__ __forceinline__ bool softmax() const { return p_.activation == Activation::softmax; }
  __device__ __forceinline__ bool wants_keys() const { return o_.grad_key.data != nullptr && first_column_ < p_.dim; }
  __device__ __forceinline__ bool wants_values() const {
    return o_.grad_value.data != nullptr && first_column_ < p_.value_dim;
  }

  __device__ __forceinline__ void fill_numbers(const RowBlock& block) const {
    if (!softmax()) return;
    for (int r = int(threadIdx.x); r < kOthers; r += int(blockDim.x)) {
      const int64_t row = problem_.first_row(p_) + block.first + r;
      const T sum = r < block.count ? o_.sums[row] : T(0);
      memory_.shifts[r] = sum == T(0) ? T(0) : o_.maxima[row];
      memory_.inverses[r] = sum == T(0) ? T(0) : T(1) / sum;
      memory_.means[r] = r < block.count && wants_keys() ? o_.known_means[row] : T(0);
    }
  }

  __device__ __forceinline__ int64_t query_row(int r) const { return memory_.rows[r].offset(problem_, p_.query); }
  __device__ __forceinline__ int64_t grad_out_row(int r) const { return memory_.rows[r].offset(problem_, o_.grad_out); }
  __device__ __forceinline__ int64_t key_row(int l) const {
    return problem_.key_offset(p_.key) + (first_ + l) * p_.key.row;
  }
  __device__ __forceinline__ int64_t value_row(int l) const {
    return problem_.key_offset(p_.value) + (first_ + l) * p_.value.row;
  }

  __device__ __forceinline__ void add_gradients(const RowBlock& block, bool own_is_there) {
    const auto query_at = [&](int r) { return query_row(r); };
    const auto grad_out_at = [&](int r) { return grad_out_row(r); };
    const bool may_hide = p_.mask_kind != MaskKind::none || first_ + valid_ > block.seen_by_all;
    Pairs<Tile> w, g;
    multiply<Tile>(p_.storage, call_.key, [&](int l) { return key_row(l); }, valid_, own_is_there, memory_.own,
                   call_.query, query_at, block.count, memory_.others, w);
    const Seen seen = make_logits<Tile, true>(p_, memory_.rows, first_, valid_, memory_.table, w);
    const auto probability = [&](int, int j, T s) {
      const int r = Tile::other(j);
      return std::exp(s - memory_.shifts[r]) * memory_.inverses[r];
    };
    make_weights<Tile>(p_.activation, seen, probability, w);
    if (wants_keys()) {
      multiply<Tile>(p_.storage, call_.value, [&](int l) { return value_row(l); }, valid_, own_is_there,
                     memory_.own_too, call_.grad_out, grad_out_at, block.count, memory_.others_too, g);
      add_grad_weights<Tile, true>(call_, problem_, memory_.rows, first_, valid_, memory_.table, g);
    }
    if (wants_values()) {
      write_table<Tile>(memory_.table, w);
      bring_grad_out(block);
      __syncwarp();
      add_weighted<Tile>(may_hide, memory_.table, memory_.others_too, call_.grad_out.stride, block.count,
                         run_columns<T>(call_.grad_out, first_column_), value_sums_);
      __syncwarp();
    }
    if (wants_keys()) {
      const auto mean = [&](int, int j) { return memory_.means[Tile::other(j)]; };
      make_logit_gradients<Tile>(p_.activation, seen, mean, w, g);
      write_table<Tile>(memory_.table, g);
      bring_back<true>(p_.storage, call_.query, first_column_, block.count, query_at, memory_.others);
      __syncwarp();
      add_weighted<Tile>(may_hide, memory_.table, memory_.others, call_.query.stride, block.count,
                         run_columns<T>(call_.query, first_column_), key_sums_);
      __syncwarp();
    }
  }

  // The run of the rows' cotangents that the values' gradients are made of, unless it is there.
  __device__ __forceinline__ void bring_grad_out(const RowBlock& block) const {
    if (wants_keys() && p_.value_dim <= kRun<T>) return;
    __syncthreads();
    bring<true>(call_.grad_out, p_.storage, first_column_, block.count, [&](int r) { return grad_out_row(r); },
          memory_.others_too);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
  }

  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) {
      const int l = Tile::own_row(i);
      if (l >= count_) continue;
      if (l >= valid_) {  // seen by nobody: zero weights alone do not silence NaN and infinity
#pragma unroll
        for (int n = 0; n < Tile::columns; ++n) key_sums_[i][n] = value_sums_[i][n] = T(0);
      }
      if (wants_keys()) {
        write_columns<Tile>(o_.grad_key, problem_.key_offset(o_.grad_key) + (first_ + l) * o_.grad_key.row,
                            first_column_, p_.dim, p_.scale, key_sums_[i], call_.wide_key, p_.storage);
      }
      if (wants_values()) {
        write_columns<Tile>(o_.grad_value, problem_.key_offset(o_.grad_value) + (first_ + l) * o_.grad_value.row,
                            first_column_, p_.value_dim, T(1), value_sums_[i], call_.wide_value, p_.storage);
      }
    }
  }

  const BackwardCall<T>& call_;
  const AttentionBackwardParams<T>& o_;
  const AttentionParams<T>& p_;
  const Memory& memory_;
  const Problem problem_;
  const int64_t first_;
  const int count_, valid_;  // of the keys that are its own, and of those that anybody may see
  const int64_t first_column_;
  Sums<Tile> key_sums_, value_sums_;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::most_threads, Tile::least_blocks)
    attention_backward_keys_kernel(const BackwardCall<typename Tile::T> call) {
  const BackwardMemory<Tile, true> memory(call);
  for (int64_t index = blockIdx.x; index < call.grid.blocks; index += gridDim.x) {
    BackwardKeys<Tile>(call, memory, index).run();
  }
}

}  // namespace mhicl::cuda
