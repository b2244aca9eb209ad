// prompt_attention: the moments c_h of each model's heads, contracted with OV. The heads of all models go through the
// moments together, since they share the context.

#include <torch/library.h>

#include "../checks.h"
#include "../prompt_sizes.h"
#include "prompt_moments_cpu.h"
#include "slices.h"

namespace mhicl {
namespace {

// ŷ_mno = Σ_hd OV_mhod c_nmhd for prompts [begin, end); weights is OV as (M, H, D, O).
template <class T>
void contract(const PromptSizes& s, const T* moments, const T* weights, int64_t begin, int64_t end, T* out) {
  for (int64_t m = 0; m < s.models; ++m) {
    kernels().matrix<T>().gemm({.rows = end - begin, .cols = s.outputs, .depth = s.model_row(),
                                   .a = moments + begin * s.row() + m * s.model_row(), .a_stride = s.row(),
                                   .unit_rows = false, .b = weights + m * s.model_row() * s.outputs,
                                   .b_stride = s.outputs, .c = out + (m * s.n + begin) * s.outputs,
                                   .c_stride = s.outputs, .accumulate = false});
  }
}

// ∂c_nmhd = Σ_o ∂ŷ_mno OV_mhod.
template <class T>
at::Tensor contract_backward(const PromptSizes& s, const at::Tensor& grad_out, const at::Tensor& ov) {
  const at::Tensor weights = ov.permute({0, 2, 1, 3}).contiguous();  // (M, O, H, D)
  at::Tensor grad = at::empty({s.n, s.models * s.heads, s.dim}, grad_out.options());
  for_slices(Slices(s.n), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t m = 0; m < s.models; ++m) {
      kernels().matrix<T>().gemm(
          {.rows = end - begin, .cols = s.model_row(), .depth = s.outputs,
           .a = grad_out.const_data_ptr<T>() + (m * s.n + begin) * s.outputs, .a_stride = s.outputs,
           .unit_rows = false, .b = weights.const_data_ptr<T>() + m * s.outputs * s.model_row(),
           .b_stride = s.model_row(), .c = grad.mutable_data_ptr<T>() + begin * s.row() + m * s.model_row(),
           .c_stride = s.row(), .accumulate = false});
    }
  });
  return grad;
}

// ∂OV_mhod = Σ_n ∂ŷ_mno c_nmhd.
template <class T>
at::Tensor ov_backward(const PromptSizes& s, const at::Tensor& grad_out, const at::Tensor& moments) {
  const Slices slices(s.n, s.n * s.row(), s.outputs * s.row());
  at::Tensor partial = partial_sums(slices, {s.models, s.outputs, s.heads, s.dim}, moments.options());
  for_slices(slices, [&](int64_t slice, int64_t begin, int64_t end) {
    for (int64_t m = 0; m < s.models; ++m) {
      kernels().matrix<T>().gemm(
          {.rows = s.outputs, .cols = s.model_row(), .depth = end - begin,
           .a = grad_out.const_data_ptr<T>() + (m * s.n + begin) * s.outputs, .a_stride = s.outputs,
           .unit_rows = true, .b = moments.const_data_ptr<T>() + begin * s.row() + m * s.model_row(),
           .b_stride = s.row(),
           .c = partial.mutable_data_ptr<T>() + (slice * s.models + m) * s.outputs * s.model_row(),
           .c_stride = s.model_row(), .accumulate = false});
    }
  });
  return sum_slices<T>(partial).permute({0, 2, 1, 3}).contiguous();
}

// ∂r_nmhe = Σ_o ∂ŷ_nmo · jacobian_nomhe for prompts [first, first + count).
template <class T>
void contract_jacobian(const PromptSizes& s, const T* grad_out, const T* jacobian, int64_t first, int64_t count, T* out) {
  for (int64_t n = first; n < first + count; ++n) {
    for (int64_t m = 0; m < s.models; ++m) {
      kernels().matrix<T>().gemm({.rows = 1, .cols = s.model_row(), .depth = s.outputs,
                                     .a = grad_out + (m * s.n + n) * s.outputs, .a_stride = s.outputs,
                                     .unit_rows = false, .b = jacobian + n * s.outputs * s.row() + m * s.model_row(),
                                     .b_stride = s.row(), .c = out + (n - first) * s.row() + m * s.model_row(),
                                     .c_stride = s.row(), .accumulate = false});
    }
  }
}

// From the Jacobian that the forward pass kept: ∂KQ = Σ_n ∂r z_qᵀ and ∂z_q = Σ_h KQ_hᵀ ∂r_h, without the context.
template <class T>
MomentsGradient jacobian_backward(const PromptSizes& s, const at::Tensor& grad_out, const at::Tensor& jacobian,
                                  const at::Tensor& query, const at::Tensor& kq, bool needs_query, bool needs_kq) {
  constexpr int64_t chunk = 32;
  MomentsGradient out;
  if (needs_query) out.query = at::empty_like(query);
  const Slices slices(s.n, s.n * s.row(), s.row() * s.dim);
  at::Tensor partial;  // (slices, D, M·H, D)
  if (needs_kq) partial = partial_sums(slices, {s.dim, s.models * s.heads, s.dim}, query.options());
  const T *grads = grad_out.const_data_ptr<T>(), *jacobians = jacobian.const_data_ptr<T>();
  const T *queries = query.const_data_ptr<T>(), *weights = kq.const_data_ptr<T>();
  T* grad_query = needs_query ? out.query.mutable_data_ptr<T>() : nullptr;
  T* grad_kq = needs_kq ? partial.mutable_data_ptr<T>() : nullptr;
  for_slices(slices, [&](int64_t slice, int64_t begin, int64_t end) {
    std::vector<T> projected(chunk * s.row());  // ∂r
    for (int64_t first = begin; first < end; first += chunk) {
      const int64_t count = std::min(chunk, end - first);
      contract_jacobian(s, grads, jacobians, first, count, projected.data());
      if (needs_kq) {
        kernels().matrix<T>().gemm({.rows = s.dim, .cols = s.row(), .depth = count, .a = queries + first * s.dim,
                                       .a_stride = s.dim, .unit_rows = true, .b = projected.data(), .b_stride = s.row(),
                                       .c = grad_kq + slice * s.dim * s.row(), .c_stride = s.row(),
                                       .accumulate = first > begin});
      }
      if (needs_query) {
        kernels().matrix<T>().gemm({.rows = count, .cols = s.dim, .depth = s.row(), .a = projected.data(),
                                       .a_stride = s.row(), .unit_rows = false, .b = weights, .b_stride = s.dim,
                                       .c = grad_query + first * s.dim, .c_stride = s.dim, .accumulate = false});
      }
    }
  });
  if (needs_kq) out.kq = sum_slices<T>(partial).permute({1, 2, 0}).contiguous();
  return out;
}

at::Tensor or_empty(const at::Tensor& computed, const at::Tensor& like) {
  return computed.defined() ? computed : at::empty({0}, like.options());
}

template <class T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& context, const at::Tensor& query,
                                                       const at::Tensor& kq, const at::Tensor& ov,
                                                       const std::optional<at::Tensor>& lengths, bool keep_moments,
                                                       bool keep_jacobian) {
  const PromptSizes s(query, ov);
  std::optional<at::Tensor> directions;
  if (keep_jacobian) directions = ov.flatten(0, 1);
  const at::Tensor weights = ov.permute({0, 1, 3, 2}).contiguous();
  at::Tensor out = at::empty({s.models, s.n, s.outputs}, ov.options());
  T* const out_data = out.mutable_data_ptr<T>();
  const Moments moments = moments_cpu<T>(context, query, kq.flatten(0, 1), lengths, false, directions,
                                         [&](const at::Tensor& moments, int64_t begin, int64_t end) {
                                           contract(s, moments.const_data_ptr<T>(), weights.const_data_ptr<T>(),
                                                    begin, end, out_data);
                                         });
  return {out, or_empty(keep_moments ? moments.moments : at::Tensor(), out), or_empty(moments.jacobian, out)};
}

template <class T>
std::array<at::Tensor, 4> backward(const at::Tensor& grad_out, const at::Tensor& context, const at::Tensor& query,
                                   const at::Tensor& kq, const at::Tensor& ov,
                                   const std::optional<at::Tensor>& lengths, const at::Tensor& moments,
                                   const at::Tensor& jacobian, const std::array<bool, 4>& needs) {
  const PromptSizes s(query, ov);
  const at::Tensor all_kq = kq.flatten(0, 1);
  MomentsGradient grad;
  if (needs[0] || needs[1] || needs[2]) {
    const bool by_jacobian = !needs[0] && jacobian.dim() == 4;
    grad = by_jacobian ? jacobian_backward<T>(s, grad_out, jacobian, query, all_kq, needs[1], needs[2])
                       : moments_backward_cpu<T>(contract_backward<T>(s, grad_out, ov), std::nullopt, context, query,
                                                 all_kq, lengths, needs[0], needs[1], needs[2]);
  }
  if (grad.kq.defined()) grad.kq = grad.kq.view(kq.sizes());
  at::Tensor grad_ov;
  if (needs[3]) {
    // A graph captured while nothing needed a gradient has kept no moments.
    const bool kept = moments.dim() == 3;
    grad_ov = ov_backward<T>(
        s, grad_out, kept ? moments : moments_cpu<T>(context, query, all_kq, lengths, false, {}, nullptr).moments);
  }
  return {or_empty(grad.context, query), or_empty(grad.query, query), or_empty(grad.kq, query),
          or_empty(grad_ov, query)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> prompt_attention(const at::Tensor& context, const at::Tensor& query,
                                                                const at::Tensor& kq, const at::Tensor& ov,
                                                                const std::optional<at::Tensor>& lengths,
                                                                bool keep_moments, bool keep_jacobian) {
  check_prompts(context, query, kq, 4, lengths);
  check_values(kq, ov);
  const auto dtype = compute_dtype(context.scalar_type());
  auto [out, moments, jacobian] =
      (dtype == at::kDouble ? forward<double> : forward<float>)(context, query.to(dtype), kq.to(dtype).contiguous(),
                                                                ov.to(dtype), lengths, keep_moments, keep_jacobian);
  return {out.to(context.scalar_type()), moments, jacobian};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> prompt_attention_backward(
    const at::Tensor& grad_out, const at::Tensor& context, const at::Tensor& query, const at::Tensor& kq,
    const at::Tensor& ov, const std::optional<at::Tensor>& lengths, const at::Tensor& moments,
    const at::Tensor& jacobian, std::array<bool, 4> needs) {
  check_prompts(context, query, kq, 4, lengths);
  check_values(kq, ov);
  check_kept(ov, grad_out, query.size(0), moments, jacobian);
  const auto dtype = compute_dtype(context.scalar_type());
  const auto [context_grad, query_grad, kq_grad, ov_grad] = (dtype == at::kDouble ? backward<double> : backward<float>)(
      grad_out.to(dtype).contiguous(), context, query.to(dtype).contiguous(), kq.to(dtype).contiguous(), ov.to(dtype),
      lengths, moments, jacobian, needs);
  const auto type = context.scalar_type();
  return {context_grad.to(type), query_grad.to(type), kq_grad.to(type), ov_grad.to(type)};
}

}  // namespace
}  // namespace mhicl

TORCH_LIBRARY_IMPL(mhicl, CPU, m) {
  m.impl("prompt_attention", mhicl::prompt_attention);
  m.impl("prompt_attention_backward", mhicl::prompt_attention_backward);
}
