// Where a thread finds itself.
#pragma once

#include "cuda_runtime_api.h"

extern __attribute__((visibility("hidden"))) uint3 threadIdx, blockIdx;
extern __attribute__((visibility("hidden"))) dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;
