// A tile's matrix products on the matrix units. Factors are rounded to TF32, whose 11 bits hold float16 and bfloat16
// exactly, so that logits of 16-bit inputs are rounded in their sums alone; sums are float32.
#pragma once

#include "tile.cuh"

namespace mhicl::cuda {

// products += own · othersᵀ over one run of columns, 16 at a time: D (16 others × 8 own) += A (16 others × 8 columns) · B
// (8 columns × 8 own), twice; of a lane's four adjacent columns each takes two. What is added in which order does not
// depend on which side is a kernel's own, so every kernel finds the same bits, if the units treat A and B alike: nobody
// says so, and a test of tests/gpu looks.
template <class Tile>
  requires Tile::tf32
__device__ __forceinline__ void add_products(const float* own, int own_stride, int own_count, const float* others,
                                             int others_stride, int others_count, int columns, Pairs<Tile>& products) {
  constexpr int units = Tile::others_mine / 2, sides = Tile::mine / 2;
  const int t = Tile::t();
  float sums[units][sides][4] = {};
#pragma unroll 1
  for (int c = 4 * t; c - 4 * t < columns; c += 16) {
    const auto read = [&](const float* rows, int stride, int row, int count) {
      return c < columns ? load_four(rows + int(least(row, count - 1)) * stride + c) : Four<float>{};
    };
    uint32_t b[sides][2][2];
#pragma unroll
    for (int side = 0; side < sides; ++side) {
      const Four<float> x = read(own, own_stride, Tile::first_own() + 8 * side + Tile::across(), own_count);
#pragma unroll
      for (int n = 0; n < 4; ++n) b[side][n / 2][n % 2] = to_tf32(x.x[n]);
    }
#pragma unroll
    for (int unit = 0; unit < units; ++unit) {
      if (16 * unit >= others_count) break;
      const Four<float> one = read(others, others_stride, Tile::other(2 * unit), others_count);
      const Four<float> two = read(others, others_stride, Tile::other(2 * unit + 1), others_count);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t a[4] = {to_tf32(one.x[2 * half]), to_tf32(two.x[2 * half]), to_tf32(one.x[2 * half + 1]),
                               to_tf32(two.x[2 * half + 1])};
#pragma unroll
        for (int side = 0; side < sides; ++side) multiply_add_tf32(sums[unit][side], a, b[side][half]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::others_mine; ++j) products[i][j] += sums[j / 2][i / 2][j % 2 * 2 + i % 2];
  }
}

// The weights of sums over others for the own rows of a warp, in a table or, turned, in its columns.
struct Weights {
  const float* first;  // of the warp's first row and the first other
  int row_stride, other_stride;

  __device__ __forceinline__ float of(int row, int other) const {
    return first[row * row_stride + other * other_stride];
  }
};

// Whether a factor is, once it has been rounded.
__device__ __forceinline__ bool is_finite(uint32_t tf32) { return (tf32 & 0x7f800000u) != 0x7f800000u; }

// D (16 columns × 8 own) += A (16 columns × 8 others) · B (8 others × 8 own). Past the last other weights are −0, and the
// last is read again. FINITE: factors that are not count as zero.
template <class Tile, bool FINITE, int UNITS, int SIDES>
__device__ __forceinline__ void multiply_weights(const Weights& weights, const float* others, int stride, int count,
                                                 int columns, float (&sums)[UNITS][SIDES][4]) {
  const auto factor = [](float x) {
    const uint32_t bits = to_tf32(x);
    return FINITE && !is_finite(bits) ? 0 : bits;
  };
#pragma unroll 1
  for (int l = Tile::t(); l - Tile::t() < count; l += 8) {
    uint32_t b[SIDES][2];
#pragma unroll
    for (int side = 0; side < SIDES; ++side) {
#pragma unroll
      for (int n = 0; n < 2; ++n) b[side][n] = factor(weights.of(8 * side + Tile::across(), l + 4 * n));
    }
    const float* const one = others + int(least(l, count - 1)) * stride;
    const float* const two = others + int(least(l + 4, count - 1)) * stride;
#pragma unroll
    for (int unit = 0; unit < UNITS; unit += 2) {
      if (16 * unit >= columns) break;
      const int column = column_mine<Tile>(2 * unit), inside = column < columns ? column : 0;
      const Four<float> x = load_four(one + inside), y = load_four(two + inside);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t a[4] = {factor(x.x[2 * half]), factor(x.x[2 * half + 1]), factor(y.x[2 * half]),
                               factor(y.x[2 * half + 1])};
#pragma unroll
        for (int side = 0; side < SIDES; ++side) multiply_add_tf32(sums[unit + half][side], a, b[side]);
      }
    }
  }
}

// A thread's part of weights · others.
template <class Tile, bool FINITE>
__device__ __forceinline__ void sum_weighted(const Weights& weights, const float* others, int stride, int count,
                                             int columns, Sums<Tile>& sums) {
  float found[Tile::columns / 2][Tile::mine / 2][4] = {};
  multiply_weights<Tile, FINITE>(weights, others, stride, count, columns, found);
#pragma unroll
  for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
    for (int n = 0; n < Tile::columns; ++n) sums[i][n] = found[n / 2][i / 2][n % 2 * 2 + i % 2];
  }
}

// sums += what sum_weighted left out as not finite, of pairs that see each other.
template <class Tile>
__device__ __forceinline__ void add_not_finite(const Weights& weights, const float* others, int stride, int count,
                                               int columns, Sums<Tile>& sums) {
#pragma unroll 1
  for (int l = 0; l < count; ++l) {
    float x[Tile::columns];
    read_columns<Tile>(others + l * stride, columns, x);
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) {
      const float w = weights.of(Tile::turned(i), l);
      if (is_hidden(w)) continue;
#pragma unroll
      for (int n = 0; n < Tile::columns; ++n) {
        if (!is_finite(to_tf32(w)) || !is_finite(to_tf32(x[n]))) sums[i][n] = std::fma(w, x[n], sums[i][n]);
      }
    }
  }
}

template <class Tile>
__device__ __forceinline__ bool all_finite(const Sums<Tile>& sums) {
  float zero = 0;
#pragma unroll
  for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
    for (int n = 0; n < Tile::columns; ++n) zero = std::fma(sums[i][n], 0.0f, zero);
  }
  return zero == 0.0f;
}

// sums += weights · others, by 64 columns, which registers have room for.
template <class Tile>
__device__ __forceinline__ void add_weighted_by(const Weights& weights, const float* others, int stride, int count,
                                                int columns, Sums<Tile>& sums) {
  using Part = MatrixTile<Tile::mine, 8>;
#pragma unroll
  for (int part = 0; part < Tile::columns / Part::columns; ++part) {
    const int first = part * Part::run;
    if (first >= columns) continue;
    Sums<Part> found;
    sum_weighted<Part, false>(weights, others + first, stride, count, columns - first, found);
    // A hidden pair's weight of zero does not silence NaN and infinity.
    if (__any_sync(kAllLanes, !all_finite<Part>(found))) {
      sum_weighted<Part, true>(weights, others + first, stride, count, columns - first, found);
      add_not_finite<Part>(weights, others + first, stride, count, columns - first, found);
    }
#pragma unroll
    for (int i = 0; i < Tile::mine; ++i) {
#pragma unroll
      for (int n = 0; n < Part::columns; ++n) sums[i][part * Part::columns + n] += found[i][n];
    }
  }
}

template <class Tile>
  requires Tile::tf32
__device__ __forceinline__ void add_weighted(bool, const float* table, const float* others, int stride, int count,
                                             int columns, Sums<Tile>& sums) {
  const Weights weights = {table + Tile::first_own() * kTableStride<float>, kTableStride<float>, 1};
  add_weighted_by<Tile>(weights, others, stride, count, columns, sums);
}

template <class Tile>
  requires Tile::tf32
__device__ __forceinline__ void add_weighted_turned(const float* table, const float* rows, int stride, int count,
                                                    int columns, Sums<Tile>& sums) {
  add_weighted_by<Tile>({table, 1, kTableStride<float>}, rows, stride, count, columns, sums);
}

}  // namespace mhicl::cuda
