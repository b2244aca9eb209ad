#include "numbers.h"

#include <bit>
#include <cmath>

namespace emulation {
namespace {

float tf32_value(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }  // the units read 19 bits

struct Fragments {
  const uint32_t *a, *b;
};

}  // namespace

float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const float fraction = float(bits & 1023), sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return std::bit_cast<float>(fraction != 0 ? 0x7fffffffu : sign < 0 ? 0xff800000u : 0x7f800000u);
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024.0f + fraction, exponent - 25);
}

uint16_t float_to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const uint32_t sign = bits >> 16 & 0x8000u;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // 65520, halfway between the largest and what would be next
  if (magnitude < 0x38800000u) {                        // below 2⁻¹⁴ a half counts in units of 2⁻²⁴
    return sign | uint32_t(std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24f));
  }
  const uint32_t odd = magnitude >> 13 & 1;
  return sign | ((magnitude + 0xfff + odd - (112u << 23)) >> 13);
}

uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
  return (bits + 0x1000u) & 0xffffe000u;
}

// The whole warp brings its fragments; the lane that comes last multiplies: D[g, n] += Σ_k A[g, k] B[k, n], each sum in
// double precision and rounded once.
void multiply_add_tf32(float* d, const uint32_t* a, const uint32_t* b, Line line) {
  const Fragments own = {a, b};
  const Meeting meeting = {"multiply_add_tf32", ~0u, 0, line};
  meet(meeting, {&own, d}, [](const Exchange* lanes) {
    const auto of = [lanes](int lane) { return static_cast<const Fragments*>(lanes[lane].brought); };
    float left[16][8], right[8][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) left[g + i % 2 * 8][t + i / 2 * 4] = tf32_value(of(lane)->a[i]);
      for (int i = 0; i < 2; ++i) right[t + i * 4][g] = tf32_value(of(lane)->b[i]);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      float* out = static_cast<float*>(lanes[lane].wanted);
      for (int i = 0; i < 4; ++i) {
        double sum = out[i];
        for (int k = 0; k < 8; ++k) sum += double(left[g + i / 2 * 8][k]) * right[k][2 * t + i % 2];
        out[i] = float(sum);
      }
    }
  });
}

}  // namespace emulation
