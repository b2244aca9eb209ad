// Elements that are stored as the kernels' own type or as 16-bit floats.

MHICL_INLINE float widen(uint16_t bits, Storage storage) {
  uint32_t wide;
  if (storage == Storage::bfloat16) {
    wide = uint32_t(bits) << 16;
  } else {
    const uint32_t exponent = bits & 0x7c00, mantissa = bits & 0x03ff;
    if (exponent == 0) {  // zero and subnormals: mantissa · 2⁻²⁴
      const float value = float(mantissa) * 0x1p-24f;
      std::memcpy(&wide, &value, 4);
    } else if (exponent == 0x7c00) {  // infinity and NaN
      wide = 0x7f800000u | (mantissa << 13);
    } else {  // the exponent's bias goes from 15 to 127
      wide = ((exponent | mantissa) << 13) + (uint32_t(127 - 15) << 23);
    }
    wide |= uint32_t(bits & 0x8000) << 16;
  }
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

// `bits` without its lowest `dropped` bits, rounded to the nearest even.
MHICL_INLINE uint32_t round_off(uint32_t bits, int dropped) {
  const uint32_t half = (uint32_t(1) << (dropped - 1)) - 1, odd = (bits >> dropped) & 1;
  return (bits + half + odd) >> dropped;
}

MHICL_INLINE uint16_t narrow(float x, Storage storage) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (storage == Storage::bfloat16) {
    return uint16_t(magnitude > 0x7f800000 ? (sign | 0x7fc0) : round_off(bits, 16));
  }
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and more round to infinity
  if (magnitude < 0x38800000) {  // below 2⁻¹⁴: a multiple of 2⁻²⁴, found by adding what has that as its last bit
    float value;
    std::memcpy(&value, &magnitude, 4);
    value += 0.5f;
    std::memcpy(&bits, &value, 4);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  return uint16_t(sign | (round_off(magnitude, 13) - ((127 - 15) << 10)));
}

template <class T>
MHICL_INLINE T read(const void* data, int64_t at, Storage storage) {
  return storage == Storage::native ? static_cast<const T*>(data)[at]
                                    : T(widen(static_cast<const uint16_t*>(data)[at], storage));
}

template <class T>
MHICL_INLINE void write(void* data, int64_t at, T x, Storage storage) {
  if (storage == Storage::native) static_cast<T*>(data)[at] = x;
  else static_cast<uint16_t*>(data)[at] = narrow(float(x), storage);
}
