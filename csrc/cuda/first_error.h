// Calls one after the other up to the first error.
#pragma once

#include <cuda_runtime_api.h>

namespace mhicl::cuda {

template <class... Calls>
cudaError_t first_error(const Calls&... calls) {
  cudaError_t error = cudaSuccess;
  ((error == cudaSuccess ? void(error = calls()) : void()), ...);
  return error;
}

}  // namespace mhicl::cuda
