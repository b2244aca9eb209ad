// A record of launches with the device's memory before and after each, so that something else can execute them too.
#pragma once

#include <string>

#include "runtime.h"

namespace emulation __attribute__((visibility("hidden"))) {

bool is_recording();

// Lives while a launch runs; does nothing unless recording is on.
class Recording {
 public:
  Recording(const std::string& kernel, const Launch& launch);
  ~Recording();
};

}  // namespace emulation
