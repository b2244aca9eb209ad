// How a tensor's elements are stored, for the kernels.
#pragma once

#include <ATen/ATen.h>

#include "params.h"

namespace mhicl {

inline Storage storage_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
    case at::kDouble: return Storage::native;
    case at::kBFloat16: return Storage::bfloat16;
    case at::kHalf: return Storage::float16;
    default: TORCH_CHECK_TYPE(false, "expected a floating-point tensor, got ", tensor.scalar_type());
  }
}

// 16-bit types are computed in float32.
inline at::ScalarType compute_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

}  // namespace mhicl
