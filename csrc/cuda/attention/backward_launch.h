// The two kernels of attention's backward pass, which are compiled apart.
#pragma once

#include "call.h"

namespace mhicl::cuda {

// By rows, with keys' and values' gradients only if one block has all the rows of a problem.
template <class T>
cudaError_t attention_backward_rows(BackwardCall<T>& call, const DeviceLimits& limits, cudaStream_t stream);

// Whether it has.
template <class T>
bool rows_fit_one_block(const BackwardCall<T>& call, const DeviceLimits& limits);

// By keys, with known means.
template <class T>
cudaError_t attention_backward_keys(BackwardCall<T>& call, const DeviceLimits& limits, cudaStream_t stream);

}  // namespace mhicl::cuda
