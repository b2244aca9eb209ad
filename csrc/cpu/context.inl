// Where one prompt's context is: in place, or widened and gathered into scratch memory.

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

// One prompt's context as rows of T: in place where it is stored so, otherwise copied to `stage`.
template <class T>
struct Rows {
  const T* data;
  int64_t stride, count;
  int64_t to_next;  // from a row to the same row of the next prompt; 0 where prompts are not adjacent rows
};

template <class T>
Rows<T> context_rows(const PromptParams<T>& p, int64_t n, T* stage) {
  const int64_t count = p.lengths == nullptr ? p.context_length : p.lengths[n];
  const int64_t offset = n * p.prompt_stride;
  if (stage == nullptr) {
    const bool adjacent = p.position_stride == p.dim && n + 1 < p.n_prompts;
    return {static_cast<const T*>(p.context) + offset, p.position_stride, count, adjacent ? p.prompt_stride : 0};
  }
  for (int64_t l = 0; l < count; ++l) {
    const int64_t row = offset + l * p.position_stride;
    for (int64_t d = 0; d < p.dim; ++d) {
      const int64_t at = row + d * p.element_stride;
      stage[l * p.dim + d] = p.storage == Storage::native ? static_cast<const T*>(p.context)[at]
                                                          : T(widen(static_cast<const uint16_t*>(p.context)[at], p.storage));
    }
  }
  return {stage, p.dim, count, 0};
}

template <class T>
bool needs_stage(const PromptParams<T>& p) {
  return p.storage != Storage::native || p.element_stride != 1;
}
