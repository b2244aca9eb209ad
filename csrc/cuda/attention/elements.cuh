// Elements that are stored as the kernels' own type or as 16-bit floats.
#pragma once

#include <cstring>

#include "../../params.h"
#include "../device.h"

namespace mhicl::cuda {

__device__ __forceinline__ float widen(uint16_t bits, Storage storage) {
  if (storage == Storage::float16) return half_to_float(bits);
  const uint32_t wide = uint32_t(bits) << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}

__device__ __forceinline__ uint16_t narrow(float x, Storage storage) {
  if (storage == Storage::float16) return float_to_half(x);
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);  // NaN stays one
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);                  // to the nearest even
}

template <class T>
__device__ __forceinline__ T read(const void* data, int64_t at, Storage storage) {
  return storage == Storage::native ? static_cast<const T*>(data)[at]
                                    : T(widen(static_cast<const uint16_t*>(data)[at], storage));
}

template <class T>
__device__ __forceinline__ void write(void* data, int64_t at, T x, Storage storage) {
  if (storage == Storage::native) static_cast<T*>(data)[at] = x;
  else static_cast<uint16_t*>(data)[at] = narrow(float(x), storage);
}

// Columns [column, column + 4) of a row of `columns`.
template <class T>
__device__ __forceinline__ void write_four(void* data, int64_t row, int column, int columns, const Four<T>& x,
                                           bool wide, Storage storage) {
  if (wide && column < columns) {
    if (storage == Storage::native) {
      store_four(static_cast<T*>(data) + row + column, x);
    } else {
      uint64_t bits = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) bits |= uint64_t(narrow(float(x.x[i]), storage)) << (16 * i);
      *reinterpret_cast<uint64_t*>(static_cast<uint16_t*>(data) + row + column) = bits;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (column + i < columns) write<T>(data, row + column + i, x.x[i], storage);
  }
}

// Widens `count` (1, 2 or 4) adjacent elements of 16 bits.
template <class T>
__device__ __forceinline__ void widen_into(T* to, const uint16_t* from, int count, Storage storage) {
  uint64_t bits;
  if (count == 4) bits = *reinterpret_cast<const uint64_t*>(from);
  else if (count == 2) bits = *reinterpret_cast<const uint32_t*>(from);
  else bits = *from;
  for (int i = 0; i < count; ++i) to[i] = T(widen(uint16_t(bits >> (16 * i)), storage));
}

}  // namespace mhicl::cuda
