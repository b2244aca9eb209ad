// A block's part of a matrix product: a tile of C, while tiles of A and B go through shared memory, the next on its way to
// registers as the present one is multiplied.
#pragma once

#include <cmath>

#include "device.h"
#include "gemm.h"
#include "ordered_sum.cuh"

namespace mhicl::cuda {

// A block computes (ROWS × COLS), DEPTH at a time, a thread PER_ROW × PER_COL of it.
template <int ROWS, int COLS, int DEPTH, int PER_ROW, int PER_COL>
struct GemmTile {
  static constexpr int rows = ROWS, cols = COLS, depth = DEPTH, per_row = PER_ROW, per_col = PER_COL;
  static constexpr int threads = ROWS / PER_ROW * (COLS / PER_COL);
  static_assert(ROWS % PER_ROW == 0 && COLS % PER_COL == 0 && threads % kWarp == 0);
  static_assert(ROWS * DEPTH % threads == 0 && COLS * DEPTH % threads == 0 && DEPTH % 8 == 0);
};

// What the kernel takes of a product. Of a sliced one the batch are the slices, of which the last may be shorter.
template <class T>
struct GemmJob {
  GemmParams<T> product;  // its depth is a slice's
  int64_t whole_depth;    // 0: nothing is sliced
  int64_t tile_rows, tiles;
  bool a_along_depth, b_along_depth;  // where memory runs on
};

template <class T>
struct GemmJobs {
  GemmJob<T> job[most_products];
  int count;
  int64_t tiles;
};

// OUTER × DEPTH numbers of a factor, from memory over registers to shared memory, where they lie [depth][outer].
template <class T, class Tile, int OUTER, int PAD>
class GemmOperand {
 public:
  static constexpr int stride = OUTER + PAD;

  __device__ __forceinline__ GemmOperand(const T* data, int64_t outer_stride, int64_t depth_stride, bool along_depth,
                                         int64_t outers, int64_t depth)
      : data_(data), outer_stride_(outer_stride), depth_stride_(depth_stride), outers_(outers), depth_(depth),
        along_depth_(along_depth) {}

  __device__ __forceinline__ void fetch(int64_t first) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int64_t k = first + depth_of(i);
      const int outer = outer_of(i);
      held_[i] = outer < outers_ && k < depth_ ? data_[outer * outer_stride_ + k * depth_stride_] : T(0);
    }
  }
  __device__ __forceinline__ void place(T* shared) const {
#pragma unroll
    for (int i = 0; i < count; ++i) shared[depth_of(i) * stride + outer_of(i)] = held_[i];
  }

 private:
  static constexpr int count = OUTER * Tile::depth / Tile::threads;
  static constexpr int run = 8;  // lanes side by side along the depth: 32 bytes, and no bank of shared memory twice

  __device__ __forceinline__ int index(int i) const { return i * Tile::threads + int(threadIdx.x); }
  __device__ __forceinline__ int outer_of(int i) const {
    return along_depth_ ? index(i) / run % OUTER : index(i) % OUTER;
  }
  __device__ __forceinline__ int depth_of(int i) const {
    return along_depth_ ? index(i) % run + run * (index(i) / run / OUTER) : index(i) / OUTER;
  }

  const T* data_;
  int64_t outer_stride_, depth_stride_, outers_, depth_;
  bool along_depth_;
  T held_[count];
};

// Tiles of C by ordinary multiply-adds.
template <class T, class Tile>
class GemmLanes {
 public:
  static constexpr int pad = 4;

  __device__ __forceinline__ void multiply(const T* a, const T* b) {
    constexpr int across = Tile::cols / Tile::per_col;
    a += threadIdx.x / across * Tile::per_row;
    b += threadIdx.x % across * Tile::per_col;
#pragma unroll
    for (int k = 0; k < Tile::depth; ++k) {
      T left[Tile::per_row], right[Tile::per_col];
      read(a + k * (Tile::rows + pad), left);
      read(b + k * (Tile::cols + pad), right);
#pragma unroll
      for (int r = 0; r < Tile::per_row; ++r) {
#pragma unroll
        for (int c = 0; c < Tile::per_col; ++c) sum_[r][c] = std::fma(left[r], right[c], sum_[r][c]);
      }
    }
  }
  // store(row, column, sum) over this thread's part of the tile.
  template <class Store>
  __device__ __forceinline__ void give(const Store& store) const {
    constexpr int across = Tile::cols / Tile::per_col;
#pragma unroll
    for (int r = 0; r < Tile::per_row; ++r) {
#pragma unroll
      for (int c = 0; c < Tile::per_col; ++c) {
        store(int(threadIdx.x) / across * Tile::per_row + r, int(threadIdx.x) % across * Tile::per_col + c, sum_[r][c]);
      }
    }
  }

 private:
  template <int N>
  static __device__ __forceinline__ void read(const T* from, T (&to)[N]) {
    if constexpr (N % 4 == 0) {
#pragma unroll
      for (int i = 0; i < N; i += 4) {
        const Four<T> four = load_four(from + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) to[i + j] = four.x[j];
      }
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) to[i] = from[i];
    }
  }

  T sum_[Tile::per_row][Tile::per_col] = {};
};

// The same on the matrix units: a warp has a 32 × 32 part of a tile, two by four of their products.
template <class Tile>
class GemmMatrixUnits {
 public:
  static constexpr int pad = 8;  // lanes of a fragment read four rows of eight: 32 banks
  static_assert(Tile::rows == 64 && Tile::cols == 64 && Tile::threads == 4 * kWarp);

  __device__ __forceinline__ void multiply(const float* a, const float* b) {
    constexpr int a_stride = Tile::rows + pad, b_stride = Tile::cols + pad;
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < Tile::depth; k += 8) {
      uint32_t left[2][4], right[4][2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          left[r][i] = to_tf32(a[(k + t + i / 2 * 4) * a_stride + first_row() + 16 * r + g + i % 2 * 8]);
        }
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) {
#pragma unroll
        for (int i = 0; i < 2; ++i) right[c][i] = to_tf32(b[(k + t + i * 4) * b_stride + first_col() + 8 * c + g]);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) multiply_add_tf32(sum_[r][c], left[r], right[c]);
      }
    }
  }
  template <class Store>
  __device__ __forceinline__ void give(const Store& store) const {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          store(first_row() + 16 * r + g + i / 2 * 8, first_col() + 8 * c + 2 * t + i % 2, sum_[r][c][i]);
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ int first_row() { return int(threadIdx.x) / kWarp / 2 * 32; }
  static __device__ __forceinline__ int first_col() { return int(threadIdx.x) / kWarp % 2 * 32; }

  float sum_[2][4][4] = {};
};

template <class T, class Tile, class Units>
struct GemmShared {
  static constexpr int a = Tile::depth * (Tile::rows + Units::pad), b = Tile::depth * (Tile::cols + Units::pad);
  static constexpr int64_t bytes = int64_t(sizeof(T)) * 2 * (a + b);
};

// One tile of C, by a whole block.
template <class T, class Tile, class Units>
__device__ __forceinline__ void gemm_tile(const GemmJob<T>& job, int64_t tile) {
  using Shared = GemmShared<T, Tile, Units>;
  const GemmParams<T>& p = job.product;
  const int64_t tile_cols = (p.cols + Tile::cols - 1) / Tile::cols, in_matrix = job.tile_rows * tile_cols;
  const int64_t batch = tile / in_matrix, row = tile % in_matrix / tile_cols * Tile::rows;
  const int64_t col = tile % in_matrix % tile_cols * Tile::cols;
  const int64_t left = job.whole_depth - batch * p.depth, depth = job.whole_depth && left < p.depth ? left : p.depth;
  GemmOperand<T, Tile, Tile::rows, Units::pad> a(p.a.data + batch * p.a.batch + row * p.a.row, p.a.row, p.a.column,
                                                 job.a_along_depth, p.rows - row, depth);
  GemmOperand<T, Tile, Tile::cols, Units::pad> b(p.b.data + batch * p.b.batch + col * p.b.column, p.b.column, p.b.row,
                                                 job.b_along_depth, p.cols - col, depth);
  T* shared = reinterpret_cast<T*>(shared_memory());
  Units units;
  if (depth > 0) {
    a.fetch(0);
    b.fetch(0);
    a.place(shared);
    b.place(shared + Shared::a);
  }
  __syncthreads();
  int half = 0;
  for (int64_t k = 0; k < depth; k += Tile::depth, half ^= 1) {
    const bool more = k + Tile::depth < depth;
    if (more) {
      a.fetch(k + Tile::depth);
      b.fetch(k + Tile::depth);
    }
    units.multiply(shared + half * (Shared::a + Shared::b), shared + half * (Shared::a + Shared::b) + Shared::a);
    if (more) {
      T* next = shared + (half ^ 1) * (Shared::a + Shared::b);
      a.place(next);
      b.place(next + Shared::a);
    }
    __syncthreads();
  }
  T* c = p.c.data + batch * p.c.batch + row * p.c.row + col * p.c.column;
  units.give([&](int r, int n, T sum) {
    if (row + r >= p.rows || col + n >= p.cols) return;
    T* to = c + r * p.c.row + n * p.c.column;
    *to = p.accumulate ? std::fma(p.alpha, sum, *to) : p.alpha * sum;
  });
}

template <class T, class Tile, class Units>
__global__ void __launch_bounds__(Tile::threads) gemm_kernel(GemmJobs<T> jobs) {
  for (int64_t at = blockIdx.x; at < jobs.tiles; at += gridDim.x) {
    int64_t tile = at;
    int which = 0;
    for (; which + 1 < jobs.count && tile >= jobs.job[which].tiles; ++which) tile -= jobs.job[which].tiles;
    gemm_tile<T, Tile, Units>(jobs.job[which], tile);
  }
}

// sums[i] (+)= Σ over slices, in order.
template <class T>
__global__ void add_slices_kernel(const T* parts, int64_t slices, int64_t size, bool accumulate, double* sums) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += step) {
    sums[i] = sum_in_order(accumulate ? sums[i] : 0.0, 0, slices,
                           [&](int64_t slice) { return double(parts[slice * size + i]); });
  }
}

}  // namespace mhicl::cuda
