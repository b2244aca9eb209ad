// Number formats and matrix units as the hardware has them.
#pragma once

#include <cstdint>

#include "scheduler.h"

namespace emulation __attribute__((visibility("hidden"))) {

float half_to_float(uint16_t bits);
uint16_t float_to_half(float x);  // to nearest, ties to even; every NaN becomes 0x7fff
uint32_t to_tf32(float x);        // to nearest, ties away from zero; every NaN becomes 0x7fffffff
void multiply_add_tf32(float* d, const uint32_t* a, const uint32_t* b, Line line);

}  // namespace emulation
