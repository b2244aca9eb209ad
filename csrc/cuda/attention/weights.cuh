// From dot products to logits and weights, on a thread's part of a tile.
#pragma once

#include "matrix_products.cuh"
#include "products.cuh"

namespace mhicl::cuda {

// Which pairs of a thread's part of a tile see each other: bit others_mine · i + j for i of its own and j of others.
using Seen = uint32_t;
template <class Tile>
__device__ __forceinline__ bool sees(Seen seen, int i, int j) {
  return (seen >> (i * Tile::others_mine + j) & 1) != 0;
}

// Dot products become logits, scale · product + mask, where a row sees the key; rounded once, and the same wherever they
// are found. Keys are counted from `first_key`, and `keys` of them are there. OWN_KEYS: whether the own are the keys, and
// not the rows.
template <class Tile, bool OWN_KEYS, class T>
__device__ __forceinline__ Seen make_logits(const AttentionParams<T>& p, const Row* rows, int64_t first_key, int keys,
                                            T* table, Pairs<Tile>& s) {
  static_assert(Tile::mine * Tile::others_mine <= 32);
  const bool masked = p.mask_kind != MaskKind::none;
  if (masked) {
    for_pairs<Tile>([&](int own, int other, int at) {
      const Row& row = rows[OWN_KEYS ? other : own];
      const int key = OWN_KEYS ? own : other;
      const bool visible = key < seen_in_tile(row, first_key, keys);
      table[at] = visible ? mask_bias(p, row.mask, first_key + key) : -T(INFINITY);
    });
  }
  constexpr int rows_mine = OWN_KEYS ? Tile::others_mine : Tile::mine;
  int limits[rows_mine];
#pragma unroll
  for (int n = 0; n < rows_mine; ++n) {
    limits[n] = seen_in_tile(rows[OWN_KEYS ? Tile::other(n) : Tile::own_row(n)], first_key, keys);
  }
  Seen seen = 0;
#pragma unroll
  for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::others_mine; ++j) {
      const T bias = masked ? table[table_at<Tile>(i, j)] : T(0);
      const bool visible = masked     ? bias != -T(INFINITY)
                           : OWN_KEYS ? Tile::own_row(i) < limits[j]
                                      : Tile::other(j) < limits[i];
      s[i][j] = std::fma(s[i][j], p.scale, bias);
      seen |= Seen(visible) << (i * Tile::others_mine + j);
    }
  }
  return seen;
}

// Logits become weights, −0 where hidden. softmax(i, j, s): what it makes of a logit that is seen.
template <class Tile, class Softmax>
__device__ __forceinline__ void make_weights(Activation activation, Seen seen, const Softmax& softmax,
                                             Pairs<Tile>& s) {
  using T = typename Tile::T;
  if (activation == Activation::softmax) {
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::others_mine; ++j) s[i][j] = sees<Tile>(seen, i, j) ? softmax(i, j, s[i][j]) : -T(0);
    }
    return;
  }
  const bool relu = activation == Activation::relu;
#pragma unroll
  for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::others_mine; ++j) {
      const T w = relu && s[i][j] <= T(0) ? T(0) : s[i][j] + T(0);  // NaN stays, and there is no −0
      s[i][j] = sees<Tile>(seen, i, j) ? w : -T(0);
    }
  }
}

}  // namespace mhicl::cuda
