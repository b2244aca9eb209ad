// Philox4x32-10 and the layout of the random streams, for any host or device. The definition is mhicl_fast/sampling.py.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MHICL_HOST_DEVICE __host__ __device__
#else
#define MHICL_HOST_DEVICE
#endif

namespace mhicl::philox {

inline constexpr int kRounds = 10;
inline constexpr std::uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
inline constexpr std::uint32_t kKeyIncrement0 = 0x9E3779B9, kKeyIncrement1 = 0xBB67AE85;

// Elements e = 64 g + 16 k + j take word k of block 16 g + j.
inline constexpr int kWords = 4;
inline constexpr int kLanes = 16;
inline constexpr int kGroup = kWords * kLanes;

inline constexpr std::uint32_t kCovariates = 0, kLabels = 1;

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
