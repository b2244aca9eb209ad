// What every entry to the attention kernels demands of its tensors. The Python functions check the same, with the
// user's names; these guard direct calls of the operators.
#pragma once

#include <array>
#include <optional>

#include <ATen/ATen.h>

namespace mhicl {

inline void check_length_type(const char* name, const at::Tensor& lengths, int64_t n) {
  TORCH_CHECK_VALUE(lengths.dim() == 1 && lengths.size(0) == n, name, " must have shape [", n, "], got ",
                    lengths.sizes());
  TORCH_CHECK_TYPE(lengths.scalar_type() == at::kLong, name, " must be int64, got ", lengths.scalar_type());
}

// The values of a contiguous CPU tensor of int64.
inline void check_lengths(const char* name, const at::Tensor& lengths, int64_t most) {
  const int64_t* value = lengths.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < lengths.numel(); ++n) {
    TORCH_CHECK_VALUE(0 <= value[n] && value[n] <= most, name, " must lie in [0, ", most, "], got ", value[n],
                      " for prompt ", n);
  }
}

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
  if (lengths) check_length_type("context_lengths", *lengths, n);
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

inline void check_like(const char* name, const at::Tensor& tensor, at::IntArrayRef shape, at::ScalarType dtype) {
  check_shape(name, tensor, shape);
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ", tensor.scalar_type());
}

// What a forward pass over n prompts with values ov (M, H, O, D) kept for its backward pass; what it did not keep is empty.
inline void check_kept(const at::Tensor& ov, const at::Tensor& grad_out, int64_t n, const at::Tensor& moments,
                       const at::Tensor& jacobian) {
  const int64_t heads = ov.size(0) * ov.size(1), outputs = ov.size(2), dim = ov.size(3);
  check_shape("grad_out", grad_out, {ov.size(0), n, outputs});
  if (moments.dim() != 1) check_shape("moments", moments, {n, heads, dim});
  if (jacobian.dim() != 1) check_shape("jacobian", jacobian, {n, outputs, heads, dim});
}

inline void check_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& key_lengths) {
  TORCH_CHECK_VALUE(query.dim() == 4, "query must be (batch, heads, rows, dim), got shape ", query.sizes());
  const int64_t batch = query.size(0), heads = query.size(1), dim = query.size(3);
  TORCH_CHECK_VALUE(key.dim() == 4 && key.size(0) == batch && key.size(3) == dim,
                    "key must be (batch, heads, keys, dim) with batch ", batch, " and dim ", dim, ", got shape ",
                    key.sizes());
  TORCH_CHECK_VALUE(value.dim() == 4 && value.sizes().slice(0, 3) == key.sizes().slice(0, 3),
                    "value must be (batch, heads, keys, value dim) like key ", key.sizes(), ", got shape ",
                    value.sizes());
  TORCH_CHECK_VALUE(key.size(1) == 0 ? heads == 0 : heads % key.size(1) == 0,
                    "query's heads must be a multiple of key's ", key.size(1), ", got ", heads);
  for (const at::Tensor& other : {key, value}) {
    TORCH_CHECK_TYPE(other.scalar_type() == query.scalar_type(), "expected one dtype, got ", query.scalar_type(),
                     " and ", other.scalar_type());
  }
  if (mask) {
    const std::array<int64_t, 4> full = {batch, heads, query.size(2), key.size(2)};
    TORCH_CHECK_VALUE(mask->dim() == 4, "attn_mask must have 4 dims, got shape ", mask->sizes());
    for (int i = 0; i < 4; ++i) {
      TORCH_CHECK_VALUE(mask->size(i) == 1 || mask->size(i) == full[i], "attn_mask must broadcast to ",
                        at::IntArrayRef(full), ", got shape ", mask->sizes());
    }
    TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool || mask->scalar_type() == query.scalar_type(),
                     "attn_mask must be bool or ", query.scalar_type(), ", got ", mask->scalar_type());
  }
  if (key_lengths) check_length_type("key_lengths", *key_lengths, batch);
}

}  // namespace mhicl
