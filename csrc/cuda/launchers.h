// What headers of launchers build on. They are for the host's compiler too, unlike device.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace mhicl::cuda {

// What a device has, as far as launches depend on it.
struct DeviceLimits {
  int multiprocessors;
  int64_t shared_per_block;  // bytes of shared memory that a block can opt in to
};

}  // namespace mhicl::cuda
