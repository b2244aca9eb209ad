// What operators allocate while they work stands for the device's memory: it begins as NaN, and kernels that write
// around it are found.
#pragma once

#include <string>

namespace emulation __attribute__((visibility("hidden"))) {

// From the first entry to the last exit, PyTorch's CPU tensors are allocated so.
void enter_device();
void leave_device();

// Which allocation has been written around, if one has.
std::string damaged_allocation();

}  // namespace emulation
