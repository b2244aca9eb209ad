// A block's tile: some rows of its own by 64 others, with what all kernels of attention do on it.
//
// A thread has the own rows MINE · down + i, i < MINE, of which COLUMNS columns each of what is summed for them, and the
// others across + 16 j, j < 4. So the 16 threads across, neighbouring lanes, share rows, and a warp's rows are no other warp's: what they
// write to a table (own × others) they read back without waiting for the block. How many threads there are down is the
// launch's to say, so that few rows have small blocks.
#pragma once

#include "../lanes.cuh"
#include "rows.cuh"

namespace mhicl::cuda {

inline constexpr int kAcross = 16, kOthers = 64, kOthersMine = kOthers / kAcross, kMostThreads = 128;

template <class Number, int OWN_MINE, int COLUMNS>
struct Tile {
  using T = Number;
  static constexpr int mine = OWN_MINE, columns = COLUMNS;
  static constexpr int run = kAcross * columns;  // columns of what is summed
  static constexpr int most_threads = mine == 1 ? kWarp : kMostThreads;
  // On a multiprocessor. Bounds a thread's registers: 255 for the large blocks, 128, 170 or 204 for those of one warp.
  static constexpr int least_blocks = mine > 1 ? 2 : sizeof(T) == 8 ? 10 : columns > 4 ? 12 : 16;
  static_assert(columns == 1 || columns % 4 == 0);
  static_assert(run <= kRun<T>);

  static constexpr int own(int threads) { return mine * (threads / kAcross); }
  static __device__ __forceinline__ int own_here() { return mine * int(blockDim.x / kAcross); }
};

// Between the rows of a table (own × others).
template <class T>
inline constexpr int kTableStride = kOthers + 16 / int(sizeof(T));

__device__ __forceinline__ int across() { return int(threadIdx.x) % kAcross; }
__device__ __forceinline__ int down() { return int(threadIdx.x) / kAcross; }

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

// products += own · othersᵀ over one run of columns. Each is a chain of fused multiply-adds in the columns' order, so
// that every kernel finds the same bits, whichever side is its own.
template <class T, int MINE>
__device__ __forceinline__ void add_products(const T* own, int own_stride, int own_count, const T* others,
                                             int others_stride, int others_count, int columns,
                                             T (&products)[MINE][kOthersMine]) {
  int own_at[MINE], others_at[kOthersMine];
#pragma unroll
  for (int i = 0; i < MINE; ++i) own_at[i] = int(least(MINE * down() + i, own_count - 1)) * own_stride;
#pragma unroll
  for (int j = 0; j < kOthersMine; ++j) {
    others_at[j] = int(least(across() + kAcross * j, others_count - 1)) * others_stride;
  }
#pragma unroll 1
  for (int c = 0; c < columns; c += 4) {
    Four<T> a[MINE], b[kOthersMine];
#pragma unroll
    for (int i = 0; i < MINE; ++i) a[i] = load_four(own + own_at[i] + c);
#pragma unroll
    for (int j = 0; j < kOthersMine; ++j) b[j] = load_four(others + others_at[j] + c);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int i = 0; i < MINE; ++i) {
#pragma unroll
        for (int j = 0; j < kOthersMine; ++j) products[i][j] = std::fma(a[i].x[k], b[j].x[k], products[i][j]);
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

// The columns of a run that a thread sums: one, or fours that are 64 apart. Past the run's end it reads others again.
template <int COLUMNS>
__device__ __forceinline__ int column_mine(int n) {
  return COLUMNS == 1 ? across() : 4 * across() + 4 * kAcross * (n / 4) + n % 4;
}

template <class T, int COLUMNS>
__device__ __forceinline__ void read_columns(const T* row, int columns, T (&x)[COLUMNS]) {
  if constexpr (COLUMNS == 1) {
    x[0] = row[across() < columns ? across() : 0];
  } else {
#pragma unroll
    for (int n = 0; n < COLUMNS; n += 4) {
      const int column = column_mine<COLUMNS>(n);
      const Four<T> four = load_four(row + (column < columns ? column : 0));
#pragma unroll
      for (int k = 0; k < 4; ++k) x[n + k] = four.x[k];
    }
  }
}

// sums += a thread's rows of a table · others. Zero weights do not silence NaN and infinity, so hidden pairs are left out
// where there may be any.
template <bool MAY_HIDE, class T, int MINE, int COLUMNS>
__device__ __forceinline__ void add_weighted_of(const T* table, const T* others, int stride, int count, int columns,
                                                T (&sums)[MINE][COLUMNS]) {
#pragma unroll 1
  for (int l = 0; l < count; l += 4) {
    Four<T> weights[MINE];
#pragma unroll
    for (int i = 0; i < MINE; ++i) weights[i] = load_four(table + i * kTableStride<T> + l);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      T x[COLUMNS];
      read_columns(others + (l + k) * stride, columns, x);
#pragma unroll
      for (int i = 0; i < MINE; ++i) {
        const T w = weights[i].x[k];
        if (MAY_HIDE && is_hidden(w)) continue;
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) sums[i][n] = std::fma(w, x[n], sums[i][n]);
      }
    }
  }
}

template <class T, int MINE, int COLUMNS>
__device__ __forceinline__ void add_weighted(bool may_hide, const T* table, const T* others, int stride, int count,
                                             int columns, T (&sums)[MINE][COLUMNS]) {
  const T* const mine = table + MINE * down() * kTableStride<T>;
  if (may_hide) add_weighted_of<true>(mine, others, stride, count, columns, sums);
  else add_weighted_of<false>(mine, others, stride, count, columns, sums);
}

// Writes factor · sums to one row's columns [first_column, …), at most a run.
template <class T, int COLUMNS>
__device__ __forceinline__ void write_columns(const Operand<void*>& to, int64_t row, int64_t first_column,
                                              int64_t columns, T factor, const T (&sums)[COLUMNS], bool wide,
                                              Storage storage) {
  const int left = int(least(kAcross * COLUMNS, columns - first_column));
  if constexpr (COLUMNS == 1) {
    if (across() < left) write<T>(to.data, row + first_column + across(), factor * sums[0], storage);
  } else {
#pragma unroll
    for (int n = 0; n < COLUMNS; n += 4) {
      Four<T> four;
#pragma unroll
      for (int k = 0; k < 4; ++k) four.x[k] = factor * sums[n + k];
      write_four(to.data, row + first_column, column_mine<COLUMNS>(n), left, four, wide, storage);
    }
  }
}

// Where a pair stands in a table, of row i of a thread's own and j of its others.
template <class T, int MINE>
__device__ __forceinline__ int table_at(int i, int j) {
  return (MINE * down() + i) * kTableStride<T> + across() + kAcross * j;
}

// Writes a thread's numbers to the table.
template <class T, int MINE>
__device__ __forceinline__ void write_table(T* table, const T (&x)[MINE][kOthersMine]) {
#pragma unroll
  for (int i = 0; i < MINE; ++i) {
#pragma unroll
    for (int j = 0; j < kOthersMine; ++j) table[table_at<T, MINE>(i, j)] = x[i][j];
  }
}

// Calls visit(own row, other, place in the table) for each of a thread's pairs. For what is rare: a loop, unlike the code
// around it, so the pairs' numbers pass through the table.
template <class T, int MINE, class Visit>
__device__ __forceinline__ void for_pairs(const Visit& visit) {
#pragma unroll 1
  for (int pair = 0; pair < MINE * kOthersMine; ++pair) {
    const int i = pair / kOthersMine, j = pair % kOthersMine;
    visit(MINE * down() + i, across() + kAcross * j, table_at<T, MINE>(i, j));
  }
}

}  // namespace mhicl::cuda
