// Tokens and numbers that are drawn where they are used.
#pragma once

#include "../../sampler_params.h"
#include "../normals.cuh"

namespace mhicl::cuda {

// The range with its step, to which the device adds the steps that it has done.
struct DrawnRange {
  PromptRange range;
  const uint32_t* steps_done;  // or null

  __device__ __forceinline__ philox::Stream stream(int64_t prompt, uint32_t id) const {
    const uint32_t step = range.step + (steps_done == nullptr ? 0 : *steps_done);
    return philox::stream(range.seed, step, range.first_prompt + uint64_t(prompt), id);
  }
};

// Elements 0, …, count − 1 of a stream.
template <class T>
__device__ __forceinline__ void draw_numbers(const philox::Stream& stream, int count, T* out, int thread, int threads) {
  const int blocks = (count + philox::kGroup - 1) / philox::kGroup * philox::kLanes;
  for (int block = thread; block < blocks; block += threads) {
    const int first = block / philox::kLanes * philox::kGroup + block % philox::kLanes;
    if (first >= count) continue;
    const Four<T> normals = normals_of_block<T>(stream, uint32_t(block));
#pragma unroll
    for (int k = 0; k < philox::kWords; ++k) {
      if (first + k * philox::kLanes < count) out[first + k * philox::kLanes] = normals.x[k];
    }
  }
}

// The columns that a stream holds in tiles of 16 tokens (csrc/philox.h), from its run of 16 elements number `base` on.
struct TiledColumns {
  int64_t base;
  int columns;
};

// Tokens first, …, first + count − 1, of which `first` is a multiple of 16, as rows of numbers.
template <class T>
__device__ __forceinline__ void draw_tokens(const philox::Stream& stream, const TiledColumns& tiled, int64_t first,
                                            int count, T* rows, int stride, int thread, int threads) {
  // A block has the numbers of one token in a tile in four columns, one after the other; it may begin before the first.
  const int64_t begin = tiled.base + first / philox::kTile * tiled.columns;
  const int runs = (count + philox::kTile - 1) / philox::kTile * tiled.columns, before = int(begin % philox::kWords);
  const int step = threads / philox::kLanes * philox::kWords;
  const int tiles_a_step = step / tiled.columns, columns_a_step = step % tiled.columns;
  const int row_end = philox::kTile * stride;  // from a tile's token to the next tile's
  int run = thread / philox::kLanes * philox::kWords - before;
  auto index = uint32_t((begin + run) / philox::kWords * philox::kLanes + thread % philox::kLanes);
  const int tile = run < 0 ? -((tiled.columns - 1 - run) / tiled.columns) : run / tiled.columns;
  int token = tile * philox::kTile + thread % philox::kLanes, column = run - tile * tiled.columns;
  for (; run < runs; run += step) {
    const Four<T> normals = normals_of_block<T>(stream, index);
    int token_here = token, column_here = column, at = token * stride + column;
#pragma unroll
    for (int k = 0; k < philox::kWords; ++k) {
      if (unsigned(token_here) < unsigned(count)) rows[at] = normals.x[k];  // a token before the first is negative
      ++at;
      if (++column_here == tiled.columns) {
        column_here = 0;
        token_here += philox::kTile;
        at += row_end - tiled.columns;
      }
    }
    index += uint32_t(step / philox::kWords * philox::kLanes);
    token += tiles_a_step * philox::kTile;
    column += columns_a_step;
    if (column >= tiled.columns) {
      column -= tiled.columns;
      token += philox::kTile;
    }
  }
}

}  // namespace mhicl::cuda
