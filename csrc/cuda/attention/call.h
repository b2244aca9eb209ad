// What the kernels of general attention are launched with, beside the parameters that they share with the CPU's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "../../attention_params.h"
#include "../launchers.h"

namespace mhicl::cuda {

// Rows are brought to shared memory in runs of so many columns at most.
template <class T>
inline constexpr int kRun = 512 / int(sizeof(T));

// A tensor (batch, heads, rows, columns) whose rows are brought to shared memory.
struct Source {
  Operand<const void*> from;
  int64_t columns;
  int at_once;    // columns that one copy takes: 1, 2 or 4
  int lane_bits;  // 2^lane_bits threads share a row
  int stride;     // between rows in shared memory
};

// How many elements can move together: 1, 2 or 4, of at most 16 bytes, nowhere across an alignment or a row's end.
inline int elements_at_once(const void* data, int64_t element_bytes, std::initializer_list<int64_t> multiples) {
  int at_once = int(std::min<int64_t>(4, 16 / element_bytes));
  for (; at_once > 1; at_once /= 2) {
    const bool fits = std::all_of(multiples.begin(), multiples.end(), [&](int64_t n) { return n % at_once == 0; });
    if (fits && reinterpret_cast<uintptr_t>(data) % uintptr_t(at_once * element_bytes) == 0) break;
  }
  return at_once;
}

template <class T, class Pointer>
int elements_at_once(const Operand<Pointer>& x, int64_t columns, Storage storage) {
  if (x.column != 1) return 1;
  const int64_t element_bytes = storage == Storage::native ? int64_t(sizeof(T)) : 2;
  return elements_at_once(x.data, element_bytes, {x.batch, x.head, x.row, columns});
}

template <class T>
Source source(const Operand<const void*>& from, int64_t columns, Storage storage) {
  Source s = {from, columns, elements_at_once<T>(from, columns, storage), 0, 0};
  const int run = int((std::min<int64_t>(columns, kRun<T>) + 3) / 4 * 4);
  while (s.lane_bits < 5 && (s.at_once << s.lane_bits) < run) ++s.lane_bits;
  // An odd number of 16 bytes: eight rows that are read at once lie in different banks.
  constexpr int unit = 16 / int(sizeof(T));
  s.stride = run / unit % 2 == 0 ? run + unit : run;
  return s;
}

// Whether results can be written four adjacent columns at a time.
inline bool four_at_once(const Operand<void*>& x, int64_t columns) {
  return (x.batch | x.head | x.row | columns) % 4 == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

inline int64_t runs_of(int64_t columns, int run) { return std::max<int64_t>(1, blocks_of(columns, run)); }

// What all kernels of attention are launched with. Blocks of own rows are counted along x, runs of columns along y.
template <class T>
struct Grid {
  int64_t own_blocks;  // of a problem
  int64_t blocks;      // of all problems
};

template <class T>
struct ForwardCall {
  AttentionForwardParams<T> params;
  Source query, key, value;
  bool wide_out;  // whether four columns of a row can be stored at once
  Grid<T> grid;
};

template <class T>
struct BackwardCall {
  AttentionBackwardParams<T> params;
  Source query, key, value, grad_out;
  bool wide_query, wide_key, wide_value;  // of the gradients, as above
  bool tf32;  // of float: products on the matrix units
  Grid<T> grid;
};

}  // namespace mhicl::cuda
