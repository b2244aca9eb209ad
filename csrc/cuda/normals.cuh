// The numbers of the random streams on the device: Philox blocks and the normals that Box-Muller makes of them, by the
// CPU's polynomials with one number in place of a vector. The definition is mhicl_fast/sampling.py.
#pragma once

#include <cmath>
#include <cstring>

#include "../philox.h"
#include "device.h"

namespace mhicl::cuda {

// What box_muller.inl asks of scalars.
namespace box_muller_scalars {

template <class T>
using Vec = T;
template <class T>
using VecBits = std::conditional_t<std::is_same_v<T, float>, int32_t, int64_t>;
template <class T>
using VecWords = uint32_t;

#define MHICL_INLINE __device__ __forceinline__

template <class T>
MHICL_INLINE T broadcast(T x) {
  return x;
}
template <class T>
MHICL_INLINE T fma(T a, T b, T c) {
  return std::fma(a, b, c);
}
template <class T>
MHICL_INLINE T select(bool mask, T yes, T no) {
  return mask ? yes : no;
}
template <class T>
MHICL_INLINE T square_root(T x) {
  return std::sqrt(x);
}

// Between numbers of one width, by their bytes.
template <class To, class From>
MHICL_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
template <class T>
MHICL_INLINE VecBits<T> to_bits(T x) {
  return bits_as<VecBits<T>>(x);
}
template <class T>
MHICL_INLINE T from_bits(VecBits<T> bits) {
  return bits_as<T>(bits);
}

template <class T>
MHICL_INLINE T to_signed(uint32_t word) {
  return T(int32_t(word));
}
template <class T>
MHICL_INLINE bool top_bit(uint32_t word) {
  return word >> 31;
}
template <class T>
MHICL_INLINE T flip_sign(T x, uint32_t word) {
  const VecBits<T> sign = VecBits<T>(word >> 31) << (8 * sizeof(T) - 1);
  return from_bits<T>(to_bits<T>(x) ^ sign);
}

#include "../box_muller.inl"

#undef MHICL_INLINE

}  // namespace box_muller_scalars

// The block that holds an element of a stream, and the element's word in it.
struct ElementPlace {
  uint32_t block;
  int word;
};

__device__ __forceinline__ ElementPlace place_of(int64_t element) {
  const uint64_t e = uint64_t(element);
  return {uint32_t(e / philox::kGroup * philox::kLanes + e % philox::kLanes),
          int(e / philox::kLanes % philox::kWords)};
}

// The four numbers of a block: with index = 16 g + j, elements 64 g + j, 64 g + 16 + j, 64 g + 32 + j, 64 g + 48 + j.
template <class T>
__device__ __forceinline__ Four<T> normals_of_block(const philox::Stream& stream, uint32_t index) {
  const philox::Block block = philox::block(stream, index);
  Four<T> normals;
  for (int i = 0; i < philox::kWords; i += 2) {
    box_muller_scalars::box_muller<T>(block.word[i], block.word[i + 1], normals.x[i], normals.x[i + 1]);
  }
  return normals;
}

// One element of a stream, for the few that stand alone.
template <class T>
__device__ __forceinline__ T normal_at(const philox::Stream& stream, int64_t element) {
  const ElementPlace place = place_of(element);
  const philox::Block block = philox::block(stream, place.block);
  const bool second_pair = place.word >= 2;
  T cosine, sine;
  box_muller_scalars::box_muller<T>(second_pair ? block.word[2] : block.word[0],
                                    second_pair ? block.word[3] : block.word[1], cosine, sine);
  return place.word % 2 == 0 ? cosine : sine;
}

}  // namespace mhicl::cuda
