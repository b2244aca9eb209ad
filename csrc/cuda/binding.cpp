#include "binding.h"

#include <array>
#include <mutex>

namespace mhicl::cuda {

DeviceLimits device_limits() {
  constexpr int most_devices = 64;
  static std::array<std::once_flag, most_devices> asked;
  static std::array<DeviceLimits, most_devices> limits;
  int device = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  TORCH_CHECK(device < most_devices, "expected at most ", most_devices, " devices, got device ", device);
  std::call_once(asked[device], [&] {
    int multiprocessors = 0, shared = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    limits[device] = {multiprocessors, shared};
  });
  return limits[device];
}

}  // namespace mhicl::cuda
