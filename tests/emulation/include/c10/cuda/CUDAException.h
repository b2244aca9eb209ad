// Stand-in for c10's checks of what the CUDA runtime returns.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#define C10_CUDA_CHECK(EXPR)                                                          \
  do {                                                                                \
    const cudaError_t error_of_check = (EXPR);                                        \
    if (error_of_check != cudaSuccess) (void)cudaGetLastError();                      \
    TORCH_CHECK(error_of_check == cudaSuccess, "CUDA error: ", cudaGetErrorString(error_of_check)); \
  } while (false)
#define C10_CUDA_CHECK_WARN(EXPR)                                                                     \
  do {                                                                                                \
    const cudaError_t error_of_check = (EXPR);                                                        \
    if (error_of_check != cudaSuccess) TORCH_WARN("CUDA warning: ", cudaGetErrorString(error_of_check)); \
  } while (false)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())
