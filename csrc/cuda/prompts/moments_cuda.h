// Moments of the attention probabilities in the kernels' own types: what the GPU's operators are built from.
#pragma once

#include "../binding.h"
#include "../gemm.h"
#include "moments.h"

namespace mhicl::cuda {

struct Moments {
  at::Tensor moments;   // (N, H, D)
  at::Tensor overlaps;  // (N, H, H), or undefined
  at::Tensor jacobian;  // (N, O, H, D), or undefined
};

// context (N, L, D) of any stride and floating dtype; query (N, D), kq (H, D, D) and directions (H, O, D) contiguous in T.
template <class T>
Moments moments_cuda(const at::Tensor& context, const at::Tensor& query, const at::Tensor& kq,
                     const std::optional<at::Tensor>& lengths, bool want_overlaps,
                     const std::optional<at::Tensor>& directions, cudaStream_t stream);

// The gradient in r_h = KQ_h z_q (N, H, D), or undefined, and in the context.
struct MomentsGradient {
  at::Tensor projected, context;
};
template <class T>
MomentsGradient moments_gradient_cuda(const at::Tensor& grad_moments, const std::optional<at::Tensor>& grad_overlaps,
                                      const at::Tensor& context, const at::Tensor& query, const at::Tensor& kq,
                                      const std::optional<at::Tensor>& lengths, bool needs_projected, bool needs_context,
                                      cudaStream_t stream);

// From the gradient in r: ∂z_q = Σ_h KQ_hᵀ ∂r_h (N, D) and ∂KQ = Σ_n ∂r z_qᵀ (H, D, D).
template <class T>
at::Tensor query_gradient(const at::Tensor& grad_projected, const at::Tensor& kq, cudaStream_t stream);
template <class T>
at::Tensor kq_gradient(const at::Tensor& grad_projected, const at::Tensor& query, cudaStream_t stream);

// C (rows, cols) of a product whose depth are the prompts, in the dtype of `like`.
template <class T>
at::Tensor sum_over_prompts(const GemmParams<T>& product, const at::Tensor& like, cudaStream_t stream) {
  const at::Tensor sums = at::empty({product.rows, product.cols}, like.options().dtype(at::kDouble));
  const at::Tensor memory = workspace(like, sliced_workspace_bytes(product));
  C10_CUDA_CHECK(sliced_gemm(product, false, memory.mutable_data_ptr(), sums.mutable_data_ptr<double>(), stream));
  return sums.to(like.scalar_type());
}

inline at::Tensor or_empty(const at::Tensor& computed, const at::Tensor& like) {
  return computed.defined() ? computed.to(like.scalar_type()) : at::empty({0}, like.options());
}

}  // namespace mhicl::cuda
