// The warp's intrinsics.
#pragma once

#include <cstring>
#include <string>

#include "scheduler.h"

namespace emulation __attribute__((visibility("hidden"))) {

template <class T>
struct Brought {
  T value;
  int argument;  // a lane, an offset or a mask
};

// Each lane gets the value of lane source(its lane, its argument); outside its segment of `width` lanes, its own.
template <class T, class Source>
T shuffle(const char* name, unsigned mask, T value, int argument, int width, Line line, Source source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) fault("shuffle width " + std::to_string(width), line);
  const Brought<T> own = {value, argument};
  T result;
  meet({name, mask, width * 16 + int(sizeof(T)), line}, {&own, &result}, [&](const Exchange* lanes) {
    const auto of = [lanes](int at) { return static_cast<const Brought<T>*>(lanes[at].brought); };
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      const int first = lane / width * width;
      const int from = source(lane, of(lane)->argument, first, first + width);
      if (!(mask >> from & 1)) {
        const std::string what = " reads lane " + std::to_string(from) + ", which its mask does not name,";
        fault_of_lane(lane, name + what, line);
      }
      *static_cast<T*>(lanes[lane].wanted) = of(from)->value;
    }
  });
  return result;
}

inline unsigned ballot(const char* name, unsigned mask, int predicate, Line line) {
  const bool own = predicate != 0;
  unsigned result;
  meet({name, mask, 0, line}, {&own, &result}, [mask](const Exchange* lanes) {
    unsigned votes = 0;
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      votes |= unsigned(*static_cast<const bool*>(lanes[lane].brought)) << lane;
    }
    for (unsigned left = mask; left != 0; left &= left - 1) {
      *static_cast<unsigned*>(lanes[__builtin_ctz(left)].wanted) = votes;
    }
  });
  return result;
}

}  // namespace emulation

#define MHICL_LINE emulation::Line line = emulation::Line::here()

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, MHICL_LINE) {
  return emulation::shuffle("__shfl_sync", mask, value, lane, width, line,
                            [](int, int from, int first, int end) { return first + (from & (end - first - 1)); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, MHICL_LINE) {
  return emulation::shuffle("__shfl_xor_sync", mask, value, lanes, width, line,
                            [](int lane, int by, int, int end) { return (lane ^ by) < end ? lane ^ by : lane; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, MHICL_LINE) {
  return emulation::shuffle("__shfl_down_sync", mask, value, int(by), width, line,
                            [](int lane, int by, int, int end) { return lane + by < end ? lane + by : lane; });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, MHICL_LINE) {
  return emulation::shuffle("__shfl_up_sync", mask, value, int(by), width, line,
                            [](int lane, int by, int first, int) { return lane - by >= first ? lane - by : lane; });
}

inline unsigned __ballot_sync(unsigned mask, int predicate, MHICL_LINE) {
  return emulation::ballot("__ballot_sync", mask, predicate, line);
}
inline int __any_sync(unsigned mask, int predicate, MHICL_LINE) {
  return emulation::ballot("__any_sync", mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, MHICL_LINE) {
  return emulation::ballot("__all_sync", mask, predicate, line) == mask;
}

inline void __syncwarp(unsigned mask = ~0u, MHICL_LINE) {
  emulation::meet({"__syncwarp", mask, 0, line}, {}, [](const emulation::Exchange*) {});
}
inline void __syncthreads(MHICL_LINE) { emulation::wait_for_block(line); }

#undef MHICL_LINE
