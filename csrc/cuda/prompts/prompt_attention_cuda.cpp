// prompt_attention on the GPU: the moments c_h of each model's heads, contracted with OV. The heads of all models go through
// the moments together, since they share the context.

#include "../../prompt_sizes.h"
#include "moments_cuda.h"

namespace mhicl::cuda {
namespace {

// ŷ_mno = Σ_hd OV_mhod c_nmhd.
template <class T>
at::Tensor contract(const PromptSizes& s, const at::Tensor& moments, const at::Tensor& ov, cudaStream_t stream) {
  const at::Tensor weights = ov.permute({0, 1, 3, 2}).contiguous();  // (M, H, D, O)
  at::Tensor out = at::empty({s.models, s.n, s.outputs}, moments.options());
  const GemmParams<T> product = {.batch = s.models,
                                 .rows = s.n,
                                 .cols = s.outputs,
                                 .depth = s.model_row(),
                                 .a = {moments.const_data_ptr<T>(), s.row(), 1, s.model_row()},
                                 .b = {weights.const_data_ptr<T>(), s.outputs, 1, s.model_row() * s.outputs},
                                 .c = {out.mutable_data_ptr<T>(), s.outputs, 1, s.n * s.outputs},
                                 .alpha = T(1),
                                 .accumulate = false,
                                 .tf32 = tf32_allowed()};
  C10_CUDA_CHECK(gemm(product, stream));
  return out;
}

// ∂c_nmhd = Σ_o ∂ŷ_mno OV_mhod.
template <class T>
at::Tensor contract_backward(const PromptSizes& s, const at::Tensor& grad_out, const at::Tensor& ov, cudaStream_t stream) {
  const at::Tensor weights = ov.permute({0, 2, 1, 3}).contiguous();  // (M, O, H, D)
  at::Tensor grad = at::empty({s.n, s.models * s.heads, s.dim}, grad_out.options());
  const GemmParams<T> product = {.batch = s.models,
                                 .rows = s.n,
                                 .cols = s.model_row(),
                                 .depth = s.outputs,
                                 .a = {grad_out.const_data_ptr<T>(), s.outputs, 1, s.n * s.outputs},
                                 .b = {weights.const_data_ptr<T>(), s.model_row(), 1, s.outputs * s.model_row()},
                                 .c = {grad.mutable_data_ptr<T>(), s.row(), 1, s.model_row()},
                                 .alpha = T(1),
                                 .accumulate = false,
                                 .tf32 = tf32_allowed()};
  C10_CUDA_CHECK(gemm(product, stream));
  return grad;
}

// ∂OV_mhod = Σ_n ∂ŷ_mno c_nmhd.
template <class T>
at::Tensor ov_gradient(const PromptSizes& s, const at::Tensor& grad_out, const at::Tensor& moments, cudaStream_t stream) {
  at::Tensor grad = at::empty({s.models, s.heads, s.outputs, s.dim}, moments.options());
  for (int64_t m = 0; m < s.models; ++m) {
    const GemmParams<T> product = {.batch = 1,
                                   .rows = s.outputs,
                                   .cols = s.model_row(),
                                   .depth = s.n,
                                   .a = {grad_out.const_data_ptr<T>() + m * s.n * s.outputs, 1, s.outputs, 0},
                                   .b = {moments.const_data_ptr<T>() + m * s.model_row(), s.row(), 1, 0},
                                   .c = {},
                                   .alpha = T(1),
                                   .accumulate = false,
                                   .tf32 = tf32_allowed()};
    const at::Tensor sums = sum_over_prompts(product, moments, stream);  // (O, H·D)
    grad[m].copy_(sums.view({s.outputs, s.heads, s.dim}).transpose(0, 1));
  }
  return grad;
}

// ∂r_nmhe = Σ_o ∂ŷ_mno · jacobian_nomhe.
at::Tensor contract_jacobian(const PromptSizes& s, const at::Tensor& grad_out, const at::Tensor& jacobian) {
  const at::Tensor factors = grad_out.permute({1, 2, 0}).unsqueeze(-1);  // (N, O, M, 1)
  return (jacobian.view({s.n, s.outputs, s.models, s.model_row()}) * factors).sum(1).view({s.n, s.models * s.heads, s.dim});
}

template <class T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& context, const at::Tensor& query,
                                                       const at::Tensor& kq, const at::Tensor& ov,
                                                       const std::optional<at::Tensor>& lengths, bool keep_moments,
                                                       bool keep_jacobian, cudaStream_t stream) {
  const PromptSizes s(query, ov);
  std::optional<at::Tensor> directions;
  if (keep_jacobian) directions = ov.flatten(0, 1).contiguous();  // (M·H, O, D)
  const Moments kept = moments_cuda<T>(context, query, kq.flatten(0, 1), lengths, false, directions, stream);
  const at::Tensor out = contract<T>(s, kept.moments, ov, stream);
  return {out.to(context.scalar_type()), or_empty(keep_moments ? kept.moments : at::Tensor(), query),
          or_empty(kept.jacobian, query)};
}

template <class T>
std::array<at::Tensor, 4> backward(const at::Tensor& grad_out, const at::Tensor& context, const at::Tensor& query,
                                   const at::Tensor& kq, const at::Tensor& ov, const std::optional<at::Tensor>& lengths,
                                   const at::Tensor& moments, const at::Tensor& jacobian,
                                   const std::array<bool, 4>& needs, cudaStream_t stream) {
  const PromptSizes s(query, ov);
  const at::Tensor all_kq = kq.flatten(0, 1);
  MomentsGradient grad;
  if (!needs[0] && (needs[1] || needs[2]) && jacobian.dim() == 4) {
    grad.projected = contract_jacobian(s, grad_out, jacobian);
  } else if (needs[0] || needs[1] || needs[2]) {
    grad = moments_gradient_cuda<T>(contract_backward<T>(s, grad_out, ov, stream), std::nullopt, context, query, all_kq,
                                    lengths, needs[1] || needs[2], needs[0], stream);
  }
  at::Tensor grad_query, grad_kq, grad_ov;
  if (needs[1]) grad_query = query_gradient<T>(grad.projected, all_kq, stream);
  if (needs[2]) grad_kq = kq_gradient<T>(grad.projected, query, stream).view(kq.sizes());
  if (needs[3]) {
    // A graph captured while nothing needed a gradient has kept no moments.
    const bool kept = moments.dim() == 3;
    grad_ov = ov_gradient<T>(
        s, grad_out,
        kept ? moments : moments_cuda<T>(context, query, all_kq, lengths, false, std::nullopt, stream).moments, stream);
  }
  return {or_empty(grad.context, context), or_empty(grad_query, context), or_empty(grad_kq, context),
          or_empty(grad_ov, context)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> prompt_attention(const at::Tensor& context, const at::Tensor& query,
                                                                const at::Tensor& kq, const at::Tensor& ov,
                                                                const std::optional<at::Tensor>& lengths,
                                                                bool keep_moments, bool keep_jacobian) {
  check_prompts(context, query, kq, 4, lengths);
  check_values(kq, ov);
  const Place place(context);
  const auto dtype = compute_dtype(context.scalar_type());
  const auto compute = dtype == at::kDouble ? forward<double> : forward<float>;
  return compute(context, query.to(dtype).contiguous(), kq.to(dtype).contiguous(), ov.to(dtype), lengths, keep_moments,
                 keep_jacobian, place.stream());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> prompt_attention_backward(
    const at::Tensor& grad_out, const at::Tensor& context, const at::Tensor& query, const at::Tensor& kq,
    const at::Tensor& ov, const std::optional<at::Tensor>& lengths, const at::Tensor& moments,
    const at::Tensor& jacobian, std::array<bool, 4> needs) {
  check_prompts(context, query, kq, 4, lengths);
  check_values(kq, ov);
  check_kept(ov, grad_out, query.size(0), moments, jacobian);
  const Place place(context);
  const auto dtype = compute_dtype(context.scalar_type());
  const auto compute = dtype == at::kDouble ? backward<double> : backward<float>;
  const auto [grad_context, grad_query, grad_kq, grad_ov] =
      compute(grad_out.to(dtype).contiguous(), context, query.to(dtype).contiguous(), kq.to(dtype).contiguous(),
              ov.to(dtype), lengths, moments.contiguous(), jacobian.contiguous(), needs, place.stream());
  return {grad_context, grad_query, grad_kq, grad_ov};
}

}  // namespace
}  // namespace mhicl::cuda

MHICL_GPU_OPERATORS(m) {
  m.impl("prompt_attention", mhicl::cuda::prompt_attention);
  m.impl("prompt_attention_backward", mhicl::cuda::prompt_attention_backward);
}
