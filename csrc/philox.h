// Philox4x32-10 and the layout of the random streams, for any host or device. The definition is mhicl_fast/sampling.py.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace mhicl::philox {

inline constexpr int kRounds = 10;
inline constexpr std::uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
inline constexpr std::uint32_t kKeyIncrement0 = 0x9E3779B9, kKeyIncrement1 = 0xBB67AE85;

// Elements e = 64 g + 16 k + j take word k of block 16 g + j.
inline constexpr int kWords = 4;
inline constexpr int kLanes = 16;
inline constexpr int kGroup = kWords * kLanes;

// What the streams of a prompt with `dim_x` covariates and `n_tasks` tasks hold:
//   CONTEXT  the context's whitened covariates, dim_x columns in tiles
//   PROMPT   the query's whitened covariates, the coefficients task by task, the noise of the query's labels, and from
//            the next multiple of 16 on the noise of the context's labels, n_tasks columns in tiles
// In tiles means: the columns of tokens 0 to 15 one after the other, then those of tokens 16 to 31, and so on.
inline constexpr std::uint32_t kContext = 0, kPrompt = 1;
inline constexpr int kTile = kLanes;

// The element of a token's column, counted from the first tile's.
MHICL_HOST_DEVICE constexpr std::int64_t in_tiles(std::int64_t token, std::int64_t column, std::int64_t columns) {
  return kTile * (token / kTile * columns + column) + token % kTile;
}

// Elements in the tiles of that many tokens.
MHICL_HOST_DEVICE constexpr std::int64_t tiled_size(std::int64_t tokens, std::int64_t columns) {
  return (tokens + kTile - 1) / kTile * kTile * columns;
}

MHICL_HOST_DEVICE constexpr std::int64_t first_coefficient(std::int64_t dim_x) { return dim_x; }

MHICL_HOST_DEVICE constexpr std::int64_t first_query_noise(std::int64_t dim_x, std::int64_t n_tasks) {
  return dim_x + n_tasks * dim_x;
}

MHICL_HOST_DEVICE constexpr std::int64_t first_context_noise(std::int64_t dim_x, std::int64_t n_tasks) {
  return tiled_size(first_query_noise(dim_x, n_tasks) + n_tasks, 1);
}

// One prompt's stream: the key, and all of the counter except the index of the block.
struct Stream {
  std::uint32_t key0, key1, counter1, counter2, counter3;
};

struct Block {
  std::uint32_t word[kWords];
};

MHICL_HOST_DEVICE inline Stream stream(std::uint64_t seed, std::uint32_t step, std::uint64_t prompt, std::uint32_t id) {
  return {std::uint32_t(seed), std::uint32_t(seed >> 32), std::uint32_t(prompt), step,
          std::uint32_t(prompt >> 32) | id << 24};
}

MHICL_HOST_DEVICE inline Block block(const Stream& stream, std::uint32_t index) {
  std::uint32_t c0 = index, c1 = stream.counter1, c2 = stream.counter2, c3 = stream.counter3;
  std::uint32_t key0 = stream.key0, key1 = stream.key1;
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t product0 = std::uint64_t(kMultiplier0) * c0;
    const std::uint64_t product1 = std::uint64_t(kMultiplier1) * c2;
    c0 = std::uint32_t(product1 >> 32) ^ c1 ^ key0;
    c1 = std::uint32_t(product1);
    c2 = std::uint32_t(product0 >> 32) ^ c3 ^ key1;
    c3 = std::uint32_t(product0);
    key0 += kKeyIncrement0;
    key1 += kKeyIncrement1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace mhicl::philox
