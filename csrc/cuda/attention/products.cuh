// A tile's matrix products in ordinary arithmetic.
#pragma once

#include "tile.cuh"

namespace mhicl::cuda {

// products += own · othersᵀ over one run of columns. Each is a chain of fused multiply-adds in the columns' order, so
// that every kernel finds the same bits, whichever side is its own.
template <class Tile, class T = typename Tile::T>
  requires(!Tile::tf32)
__device__ __forceinline__ void add_products(const T* own, int own_stride, int own_count, const T* others,
                                             int others_stride, int others_count, int columns, Pairs<Tile>& products) {
  int own_at[Tile::mine], others_at[Tile::others_mine];
#pragma unroll
  for (int i = 0; i < Tile::mine; ++i) own_at[i] = int(least(Tile::own_row(i), own_count - 1)) * own_stride;
#pragma unroll
  for (int j = 0; j < Tile::others_mine; ++j) {
    others_at[j] = int(least(Tile::other(j), others_count - 1)) * others_stride;
  }
#pragma unroll 1
  for (int c = 0; c < columns; c += 4) {
    Four<T> a[Tile::mine], b[Tile::others_mine];
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) a[i] = load_four(own + own_at[i] + c);
#pragma unroll
    for (int j = 0; j < Tile::others_mine; ++j) b[j] = load_four(others + others_at[j] + c);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::others_mine; ++j) {
          products[i][j] = std::fma(a[i].x[k], b[j].x[k], products[i][j]);
        }
      }
    }
  }
}

// sums += a thread's rows of a table · others. Zero weights do not silence NaN and infinity, so hidden pairs are left out
// where there may be any.
template <class Tile, bool MAY_HIDE, class T>
__device__ __forceinline__ void add_weighted_of(const T* table, const T* others, int stride, int count, int columns,
                                                Sums<Tile>& sums) {
#pragma unroll 1
  for (int l = 0; l < count; l += 4) {
    Four<T> weights[Tile::mine];
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) weights[i] = load_four(table + i * kTableStride<T> + l);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      T x[Tile::columns];
      read_columns<Tile>(others + (l + k) * stride, columns, x);
#pragma unroll
      for (int i = 0; i < Tile::mine; ++i) {
        const T w = weights[i].x[k];
        if (MAY_HIDE && is_hidden(w)) continue;
#pragma unroll
        for (int n = 0; n < Tile::columns; ++n) sums[i][n] = std::fma(w, x[n], sums[i][n]);
      }
    }
  }
}

template <class Tile, class T = typename Tile::T>
  requires(!Tile::tf32)
__device__ __forceinline__ void add_weighted(bool may_hide, const T* table, const T* others, int stride, int count,
                                             int columns, Sums<Tile>& sums) {
  const T* const mine = table + Tile::own_row(0) * kTableStride<T>;
  if (may_hide) add_weighted_of<Tile, true>(mine, others, stride, count, columns, sums);
  else add_weighted_of<Tile, false>(mine, others, stride, count, columns, sums);
}

// sums += tableᵀ · rows, for the columns of the table that are a thread's.
template <class Tile, class T = typename Tile::T>
  requires(!Tile::tf32)
__device__ __forceinline__ void add_weighted_turned(const T* table, const T* rows, int stride, int count, int columns,
                                                    T (&sums)[Tile::turned_mine][Tile::columns]) {
#pragma unroll 1
  for (int r = 0; r < count; ++r) {
    const Four<T> weights = load_four(table + r * kTableStride<T>);
    T x[Tile::columns];
    read_columns<Tile>(rows + r * stride, columns, x);
#pragma unroll
    for (int k = 0; k < Tile::turned_mine; ++k) {
      if (is_hidden(weights.x[k])) continue;
#pragma unroll
      for (int n = 0; n < Tile::columns; ++n) sums[k][n] = std::fma(weights.x[k], x[n], sums[k][n]);
    }
  }
}

}  // namespace mhicl::cuda
