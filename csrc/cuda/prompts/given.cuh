// Tokens of contexts that lie in memory.
#pragma once

#include "attend.cuh"
#include "moments.h"

namespace mhicl::cuda {

// A token's place and its number, for threads that walk through tokens of `columns` numbers with a fixed stride.
struct Walk {
  int token, column, tokens_a_step, columns_a_step, columns;

  __device__ __forceinline__ Walk(int start, int stride, int columns)
      : token(start / columns), column(start % columns), tokens_a_step(stride / columns),
        columns_a_step(stride % columns), columns(columns) {}
  __device__ __forceinline__ void step() {
    token += tokens_a_step;
    column += columns_a_step;
    if (column >= columns) {
      column -= columns;
      ++token;
    }
  }
};

template <class T>
__device__ __forceinline__ T widen(Storage storage, uint16_t bits) {
  return T(storage == Storage::bfloat16 ? __uint_as_float(uint32_t(bits) << 16) : half_to_float(bits));
}

template <class A>
struct GivenTokens {
  using T = typename A::T;

  const A& a;
  const GivenPrompts<T>& p;
  int64_t prompt;

  __device__ __forceinline__ void operator()(int first, int count) const {
    if (p.storage != Storage::native) {
      widen_tokens(first, count);
    } else if (lie_as_wanted(first)) {
      copy_whole(first, count);
    } else {
      copy_numbers(first, count);
    }
    a.pad_tokens(count);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
  }

 private:
  __device__ __forceinline__ int64_t offset(int first) const {
    return prompt * p.prompt_stride + first * p.position_stride;
  }
  __device__ __forceinline__ const T* begin(int first) const {
    return static_cast<const T*>(p.context) + offset(first);
  }

  // One after the other as in shared memory, on a multiple of 16 bytes.
  __device__ __forceinline__ bool lie_as_wanted(int first) const {
    return p.element_stride == 1 && p.position_stride == a.layout.token_stride && p.dim == a.layout.token_stride &&
           reinterpret_cast<uintptr_t>(begin(first)) % 16 == 0;
  }

  __device__ __forceinline__ void copy_whole(int first, int count) const {
    constexpr int together = 16 / int(sizeof(T));
    const T* const from = begin(first);
    const int size = count * a.layout.token_stride, whole = size / together * together;
    for (int at = a.thread * together; at < whole; at += a.threads * together) copy_async<16>(a.tokens + at, from + at);
    for (int at = whole + a.thread; at < size; at += a.threads) copy_async<sizeof(T)>(a.tokens + at, from + at);
  }

  __device__ __forceinline__ void copy_numbers(int first, int count) const {
    const T* const from = begin(first);
    for (Walk at(a.thread, a.threads, int(p.dim)); at.token < count; at.step()) {
      copy_async<sizeof(T)>(a.tokens + at.token * a.layout.token_stride + at.column,
                            from + at.token * p.position_stride + at.column * p.element_stride);
    }
  }

  __device__ __forceinline__ void widen_tokens(int first, int count) const {
    const uint16_t* const from = static_cast<const uint16_t*>(p.context) + offset(first);
    for (Walk at(a.thread, a.threads, int(p.dim)); at.token < count; at.step()) {
      a.tokens[at.token * a.layout.token_stride + at.column] =
          widen<T>(p.storage, from[at.token * p.position_stride + at.column * p.element_stride]);
    }
  }
};

}  // namespace mhicl::cuda
