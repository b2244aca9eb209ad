// A block's tile: some rows of its own by 64 others, with what all kernels of attention do on it.
//
// A thread has some of the own rows, with some columns each of what is summed for them, and some of the others. The
// layout says which: own_row(i), i < mine; other(j), j < others_mine; four columns from 4 across() on, and again after
// each 4 kAcross. The kAcross threads that share own rows are of one warp and differ in across(); those that share others
// and columns differ in down(). A warp's own rows are no other warp's: what it writes to a table (own × others) it reads
// back without waiting for the block. How many threads a block has is the launch's to say, so that few rows have small
// blocks.
#pragma once

#include "../lanes.cuh"
#include "rows.cuh"

namespace mhicl::cuda {

inline constexpr int kOthers = 64, kMostThreads = 128;

// Own rows mine · down + i, others across + 16 j; neighbouring lanes share rows. For ordinary arithmetic.
template <class Number, int OWN_MINE, int COLUMNS>
struct Tile {
  using T = Number;
  static constexpr bool tf32 = false;
  static constexpr int kAcross = 16;
  static constexpr int mine = OWN_MINE, others_mine = kOthers / kAcross, columns = COLUMNS;
  static constexpr int run = kAcross * columns;  // columns of what is summed
  static constexpr int most_threads = mine == 1 ? kWarp : kMostThreads;
  // On a multiprocessor. Bounds a thread's registers: 255 for the large blocks, 128, 170 or 204 for those of one warp.
  static constexpr int least_blocks = mine > 1 ? 2 : sizeof(T) == 8 ? 10 : columns > 4 ? 12 : 16;
  static_assert(columns == 1 || columns % 4 == 0);
  static_assert(run <= kRun<T>);

  static constexpr int own(int threads) { return mine * (threads / kAcross); }
  static __device__ __forceinline__ int own_here() { return mine * int(blockDim.x / kAcross); }
  static __device__ __forceinline__ int across() { return int(threadIdx.x) % kAcross; }
  static __device__ __forceinline__ int down() { return int(threadIdx.x) / kAcross; }
  static __device__ __forceinline__ int own_row(int i) { return mine * down() + i; }
  static __device__ __forceinline__ int other(int j) { return across() + kAcross * j; }
  // Of the other side, where sums are over own rows: first_turned + turned(k), k < turned_mine, and so on.
  static constexpr int turned_mine = 4;
  static __device__ __forceinline__ int first_turned() { return turned_mine * down(); }
  static __device__ __forceinline__ int turned_here() { return turned_mine * int(blockDim.x / kAcross); }
  static __device__ __forceinline__ int turned(int k) { return k; }
  // Over the threads that share own rows.
  static __device__ __forceinline__ T sum_across(T x) { return sum_of_lanes<kAcross>(x); }
  static __device__ __forceinline__ T largest_across(T x) { return largest_of_lanes<kAcross>(x); }
};

// For the matrix units, whose fragments (device.h) are the layout: of D (16 others or columns × 8 own rows) lane 4 g + t
// has [g, 2t], [g, 2t + 1], [g + 8, 2t], [g + 8, 2t + 1]. Rows and columns are permuted, g standing for across() and own
// rows 2t, 2t + 1 for t, t + 4, so that eight lanes that read four numbers each (two g, four t) find them in different
// banks: rows are an odd number of fours apart.
template <int OWN_MINE, int COLUMNS>
struct MatrixTile {
  using T = float;
  static constexpr bool tf32 = true;
  static constexpr int kAcross = 8;
  static constexpr int mine = OWN_MINE, others_mine = kOthers / kAcross, columns = COLUMNS;
  static constexpr int run = kAcross * columns;
  static constexpr int most_threads = kMostThreads, least_blocks = 2;
  static_assert(mine % 2 == 0 && columns % 8 == 0 && run <= kRun<T>);

  static constexpr int own(int threads) { return mine * (threads / kAcross); }
  static __device__ __forceinline__ int own_here() { return mine * int(blockDim.x / kAcross); }
  static __device__ __forceinline__ int g() { return int(threadIdx.x) % kWarp / 4; }
  static __device__ __forceinline__ int t() { return int(threadIdx.x) % 4; }
  static __device__ __forceinline__ int first_own() { return 4 * mine * (int(threadIdx.x) / kWarp); }  // of the warp
  static __device__ __forceinline__ int across() { return g() / 2 + 4 * (g() % 2); }
  static __device__ __forceinline__ int down() { return 4 * (int(threadIdx.x) / kWarp) + t(); }
  static __device__ __forceinline__ int own_row(int i) { return first_own() + t() + 4 * i; }
  static __device__ __forceinline__ int other(int j) { return across() + kAcross * j; }
  static constexpr int turned_mine = mine;
  static __device__ __forceinline__ int first_turned() { return first_own(); }
  static __device__ __forceinline__ int turned_here() { return own_here(); }
  static __device__ __forceinline__ int turned(int k) { return t() + 4 * k; }
  static __device__ __forceinline__ T sum_across(T x) { return sum_of_lanes<kAcross, 4>(x); }
  static __device__ __forceinline__ T largest_across(T x) { return largest_of_lanes<kAcross, 4>(x); }
};

// A thread's part of a tile.
template <class Tile>
using Pairs = typename Tile::T[Tile::mine][Tile::others_mine];
template <class Tile>
using Sums = typename Tile::T[Tile::mine][Tile::columns];

// Between the rows of a table (own × others).
template <class T>
inline constexpr int kTableStride = kOthers + 16 / int(sizeof(T));

// Hands out the block's shared memory.
class SharedMemory {
 public:
  __device__ __forceinline__ SharedMemory() : free_(shared_memory()) {}
  template <class X>
  __device__ __forceinline__ X* take(int count) {
    X* const taken = reinterpret_cast<X*>(free_);
    free_ += count * int(sizeof(X));
    return taken;
  }

 private:
  char* free_;
};

__device__ __forceinline__ int in_fours(int64_t count) { return int((count + 3) / 4 * 4); }

// Starts to bring the columns [first_column, …) of `count` rows, one run at most, to shared memory; at(r) is where row r
// begins. Rows are filled up with zeros to fours. FILL: rows of zeros follow up to a multiple of four.
template <bool FILL, class T, class At>
__device__ __forceinline__ void bring(const Source& source, Storage storage, int64_t first_column, int count,
                                      const At& at, T* to) {
  const int rows = FILL ? in_fours(count) : count;
  const int columns = int(least(kRun<T>, source.columns - first_column)), lanes = 1 << source.lane_bits;
  const int lane = int(threadIdx.x) & (lanes - 1);
#pragma unroll 1
  for (int r = int(threadIdx.x) >> source.lane_bits; r < rows; r += int(blockDim.x) >> source.lane_bits) {
    const int64_t row = r < count ? at(r) + first_column * source.from.column : 0;
#pragma unroll 1
    for (int c = lane * source.at_once; c < in_fours(columns); c += lanes * source.at_once) {
      T* const put = to + r * source.stride + c;
      const int64_t get = row + c * source.from.column;
      if (r >= count || c >= columns) {
        for (int i = 0; i < source.at_once; ++i) put[i] = T(0);
      } else if (storage != Storage::native) {
        widen_into(put, static_cast<const uint16_t*>(source.from.data) + get, source.at_once, storage);
      } else if (source.at_once == 1) {
        copy_async<sizeof(T)>(put, static_cast<const T*>(source.from.data) + get);
      } else if (source.at_once == 2) {
        copy_async<2 * sizeof(T)>(put, static_cast<const T*>(source.from.data) + get);
      } else {
        copy_async<16>(put, static_cast<const T*>(source.from.data) + get);
      }
    }
  }
}

// A hidden pair's entry in a table of weights or their gradients is −0, which no other has.
__device__ __forceinline__ bool is_hidden(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits == uint32_t(1) << 31;
}
__device__ __forceinline__ bool is_hidden(double x) {
  uint64_t bits;
  memcpy(&bits, &x, 8);
  return bits == uint64_t(1) << 63;
}

// The columns of a run that a thread sums: one, or fours that are 4 kAcross apart. Past the run's end it reads others
// again.
template <class Tile>
__device__ __forceinline__ int column_mine(int n) {
  if (Tile::columns == 1) return Tile::across();
  return 4 * Tile::across() + 4 * Tile::kAcross * (n / 4) + n % 4;
}

template <class Tile>
__device__ __forceinline__ void read_columns(const typename Tile::T* row, int columns,
                                             typename Tile::T (&x)[Tile::columns]) {
  if constexpr (Tile::columns == 1) {
    x[0] = row[Tile::across() < columns ? Tile::across() : 0];
  } else {
#pragma unroll
    for (int n = 0; n < Tile::columns; n += 4) {
      const int column = column_mine<Tile>(n);
      const auto four = load_four(row + (column < columns ? column : 0));
#pragma unroll
      for (int k = 0; k < 4; ++k) x[n + k] = four.x[k];
    }
  }
}

// Writes factor · sums to one row's columns [first_column, …), at most a run.
template <class Tile>
__device__ __forceinline__ void write_columns(const Operand<void*>& to, int64_t row, int64_t first_column,
                                              int64_t columns, typename Tile::T factor,
                                              const typename Tile::T (&sums)[Tile::columns], bool wide,
                                              Storage storage) {
  using T = typename Tile::T;
  const int left = int(least(Tile::run, columns - first_column));
  if constexpr (Tile::columns == 1) {
    const int column = Tile::across();
    if (column < left) write<T>(to.data, row + first_column + column, factor * sums[0], storage);
  } else {
#pragma unroll
    for (int n = 0; n < Tile::columns; n += 4) {
      Four<T> four;
#pragma unroll
      for (int k = 0; k < 4; ++k) four.x[k] = factor * sums[n + k];
      write_four(to.data, row + first_column, column_mine<Tile>(n), left, four, wide, storage);
    }
  }
}

// Where a pair stands in a table, of row i of a thread's own and j of its others.
template <class Tile>
__device__ __forceinline__ int table_at(int i, int j) {
  return Tile::own_row(i) * kTableStride<typename Tile::T> + Tile::other(j);
}

// Writes a thread's numbers to the table.
template <class Tile>
__device__ __forceinline__ void write_table(typename Tile::T* table, const Pairs<Tile>& x) {
#pragma unroll
  for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::others_mine; ++j) table[table_at<Tile>(i, j)] = x[i][j];
  }
}

// Calls visit(own row, other, place in the table) for each of a thread's pairs. For what is rare: a loop, unlike the code
// around it, so the pairs' numbers pass through the table.
template <class Tile, class Visit>
__device__ __forceinline__ void for_pairs(const Visit& visit) {
#pragma unroll 1
  for (int pair = 0; pair < Tile::mine * Tile::others_mine; ++pair) {
    const int i = pair / Tile::others_mine, j = pair % Tile::others_mine;
    visit(Tile::own_row(i), Tile::other(j), table_at<Tile>(i, j));
  }
}

}  // namespace mhicl::cuda
