// From dot products to logits and weights, on a thread's part of a tile.
#pragma once

#include "tile.cuh"

namespace mhicl::cuda {

// Which pairs of a thread's part of a tile see each other: bit 4 i + j for i of its own and j of the others.
using Seen = uint32_t;
__device__ __forceinline__ bool sees(Seen seen, int i, int j) { return (seen >> (i * kOthersMine + j) & 1) != 0; }

// Dot products become logits, scale · product + mask, where a row sees the key; rounded once, and the same wherever they
// are found. Keys are counted from `first_key`, and `keys` of them are there. OWN_KEYS: whether the own are the keys, and
// not the rows.
template <bool OWN_KEYS, class T, int MINE>
__device__ __forceinline__ Seen make_logits(const AttentionParams<T>& p, const Row* rows, int64_t first_key, int keys,
                                            T* table, T (&s)[MINE][kOthersMine]) {
  static_assert(MINE * kOthersMine <= 32);
  const bool masked = p.mask_kind != MaskKind::none;
  if (masked) {
    for_pairs<T, MINE>([&](int own, int other, int at) {
      const Row& row = rows[OWN_KEYS ? other : own];
      const int key = OWN_KEYS ? own : other;
      const bool visible = key < seen_in_tile(row, first_key, keys);
      table[at] = visible ? mask_bias(p, row.mask, first_key + key) : -T(INFINITY);
    });
  }
  int limits[OWN_KEYS ? kOthersMine : MINE];
#pragma unroll
  for (int n = 0; n < (OWN_KEYS ? kOthersMine : MINE); ++n) {
    limits[n] = seen_in_tile(rows[OWN_KEYS ? across() + kAcross * n : MINE * down() + n], first_key, keys);
  }
  Seen seen = 0;
#pragma unroll
  for (int i = 0; i < MINE; ++i) {
#pragma unroll
    for (int j = 0; j < kOthersMine; ++j) {
      const T bias = masked ? table[table_at<T, MINE>(i, j)] : T(0);
      const bool visible = masked     ? bias != -T(INFINITY)
                           : OWN_KEYS ? MINE * down() + i < limits[j]
                                      : across() + kAcross * j < limits[i];
      s[i][j] = std::fma(s[i][j], p.scale, bias);
      seen |= Seen(visible) << (i * kOthersMine + j);
    }
  }
  return seen;
}

// Logits become weights, −0 where hidden. softmax(i, j, s): what it makes of a logit that is seen.
template <class T, int MINE, class Softmax>
__device__ __forceinline__ void make_weights(Activation activation, Seen seen, const Softmax& softmax,
                                             T (&s)[MINE][kOthersMine]) {
  if (activation == Activation::softmax) {
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
#pragma unroll
      for (int j = 0; j < kOthersMine; ++j) s[i][j] = sees(seen, i, j) ? softmax(i, j, s[i][j]) : -T(0);
    }
    return;
  }
  const bool relu = activation == Activation::relu;
#pragma unroll
  for (int i = 0; i < MINE; ++i) {
#pragma unroll
    for (int j = 0; j < kOthersMine; ++j) {
      const T w = relu && s[i][j] <= T(0) ? T(0) : s[i][j] + T(0);  // NaN stays, and there is no −0
      s[i][j] = sees(seen, i, j) ? w : -T(0);
    }
  }
}

}  // namespace mhicl::cuda
