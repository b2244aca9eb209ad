// What csrc/cuda/device.h takes from the hardware, on the host: the same names with the same meaning, which check what
// the hardware demands.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "block_memory.h"
#include "numbers.h"
#include "scheduler.h"

namespace mhicl::cuda {

template <class T>
struct Four;

inline char* shared_memory() { return emulation::shared_begin(); }

namespace detail {

inline void check_multiple_of_16(const void* address, const char* what, emulation::Line line) {
  const auto past = reinterpret_cast<uintptr_t>(address) % 16;
  if (past == 0) return;
  emulation::fault(std::string("misaligned ") + what + " of four (" + std::to_string(past) +
                       " bytes past a multiple of 16)",
                   line);
}

}  // namespace detail

template <class T>
Four<T> load_four(const T* from, emulation::Line line = emulation::Line::here()) {
  detail::check_multiple_of_16(from, "load", line);
  return *reinterpret_cast<const Four<T>*>(from);
}

template <class T>
void store_four(T* to, const Four<T>& four, emulation::Line line = emulation::Line::here()) {
  detail::check_multiple_of_16(to, "store", line);
  *reinterpret_cast<Four<T>*>(to) = four;
}

template <int BYTES>
void copy_async(void* shared, const void* global, emulation::Line line = emulation::Line::here()) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
  emulation::start_copy(shared, global, BYTES, line);
}
inline void commit_copies() { emulation::close_copies(); }
template <int PENDING>
void wait_for_copies() {
  emulation::finish_copies(PENDING);
}

inline float half_to_float(uint16_t bits) { return emulation::half_to_float(bits); }
inline uint16_t float_to_half(float x) { return emulation::float_to_half(x); }
inline uint32_t to_tf32(float x) { return emulation::to_tf32(x); }

inline void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              emulation::Line line = emulation::Line::here()) {
  emulation::multiply_add_tf32(d, a, b, line);
}

}  // namespace mhicl::cuda
