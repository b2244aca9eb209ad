// What every entry to the attention kernels demands of its tensors. The Python functions check the same, with the
// user's names; these guard direct calls of the operators.
#pragma once

#include <optional>

#include <ATen/ATen.h>

namespace mhicl {

inline void check_prompts(const at::Tensor& context, const at::Tensor& query, const at::Tensor& kq,
                          int64_t kq_dims, const std::optional<at::Tensor>& lengths) {
  TORCH_CHECK_VALUE(context.dim() == 3, "context must be (prompts, positions, dim), got shape ", context.sizes());
  const int64_t n = context.size(0), d = context.size(2);
  TORCH_CHECK_VALUE(query.dim() == 2 && query.size(0) == n && query.size(1) == d, "query must be (prompts, dim) = (", n,
                    ", ", d, "), got shape ", query.sizes());
  TORCH_CHECK_VALUE(kq.dim() == kq_dims && kq.size(-1) == d && kq.size(-2) == d,
                    kq_dims == 3 ? "kq must be (heads, dim, dim)" : "kq must be (models, heads, dim, dim)", ", dim = ", d,
                    ", got shape ", kq.sizes());
  for (const at::Tensor& other : {query, kq}) {
    TORCH_CHECK_TYPE(other.scalar_type() == context.scalar_type(), "expected one dtype, got ", context.scalar_type(),
                     " and ", other.scalar_type());
  }
  if (lengths) {
    TORCH_CHECK_VALUE(lengths->dim() == 1 && lengths->size(0) == n, "context_lengths must be (prompts) = (", n,
                      "), got shape ", lengths->sizes());
    TORCH_CHECK_TYPE(lengths->scalar_type() == at::kLong, "context_lengths must be int64, got ",
                     lengths->scalar_type());
  }
}

inline void check_values(const at::Tensor& kq, const at::Tensor& ov) {
  TORCH_CHECK_VALUE(kq.dim() == 4 && ov.dim() == 4 && ov.size(0) == kq.size(0) && ov.size(1) == kq.size(1) &&
                        ov.size(3) == kq.size(3),
                    "kq must be (models, heads, dim, dim) and ov (models, heads, outputs, dim), got shapes ",
                    kq.sizes(), " and ", ov.sizes());
  TORCH_CHECK_TYPE(ov.scalar_type() == kq.scalar_type(), "expected one dtype, got ", kq.scalar_type(), " and ",
                   ov.scalar_type());
}

inline void check_shape(const char* name, const at::Tensor& tensor, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
}

}  // namespace mhicl
