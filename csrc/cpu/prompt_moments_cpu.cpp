#include "prompt_moments_cpu.h"

#include <torch/library.h>

#include "../checks.h"
#include "slices.h"

namespace mhicl {
namespace {

// PromptParams and the tensors that its pointers point into.
template <class T>
struct Prompts {
  at::Tensor query, packed_kq;
  std::optional<at::Tensor> lengths;
  PromptParams<T> params;

  Prompts(const at::Tensor& context, const at::Tensor& query_, const at::Tensor& kq,
          const std::optional<at::Tensor>& lengths_)
      : query(query_.contiguous()) {
    if (lengths_) {
      lengths = lengths_->contiguous();
      check_lengths("context_lengths", *lengths, context.size(1));
    }
    const int64_t heads = kq.size(0), lanes = kernels().matrix<T>().lanes;
    int64_t width = 1;
    while (width < heads && width < lanes) width *= 2;
    params = {.n_prompts = context.size(0),
              .context_length = context.size(1),
              .dim = context.size(2),
              .heads = heads,
              .width = width,
              .blocks = (heads + width - 1) / width,
              .context = context.const_data_ptr(),
              .storage = storage_of(context),
              .prompt_stride = context.stride(0),
              .position_stride = context.stride(1),
              .element_stride = context.stride(2),
              .lengths = lengths ? lengths->template const_data_ptr<int64_t>() : nullptr,
              .query = query.const_data_ptr<T>(),
              .packed_kq = nullptr};
    packed_kq = pack(kq).permute({0, 3, 2, 1}).contiguous();
    params.packed_kq = packed_kq.const_data_ptr<T>();
  }

  // (H, …) as (blocks, width, …), zeros where there is no head.
  at::Tensor pack(const at::Tensor& by_head) const {
    std::vector<int64_t> shape = by_head.sizes().vec();
    shape[0] = params.blocks * params.width - params.heads;
    const at::Tensor padded =
        shape[0] == 0 ? by_head : at::cat({by_head, at::zeros(shape, by_head.options())});
    shape[0] = params.width;
    shape.insert(shape.begin(), params.blocks);
    return padded.reshape(shape);
  }
};

}  // namespace

template <class T>
Moments moments_cpu(const at::Tensor& context, const at::Tensor& query, const at::Tensor& kq,
                    const std::optional<at::Tensor>& lengths, bool want_overlaps,
                    const std::optional<at::Tensor>& directions, const AfterMoments& after) {
  const Prompts<T> prompts(context, query, kq, lengths);
  const PromptParams<T>& p = prompts.params;
  Moments out;
  out.moments = at::empty({p.n_prompts, p.heads, p.dim}, kq.options());
  if (want_overlaps) out.overlaps = at::empty({p.n_prompts, p.heads, p.heads}, kq.options());
  at::Tensor packed_directions;
  if (directions) {
    packed_directions = prompts.pack(*directions).permute({0, 3, 2, 1}).contiguous();
    out.jacobian = at::empty({p.n_prompts, directions->size(1), p.heads, p.dim}, kq.options());
  }
  const MomentsForwardParams<T> params = {
      .prompts = p,
      .directions = directions ? directions->size(1) : 0,
      .packed_directions = directions ? packed_directions.const_data_ptr<T>() : nullptr,
      .moments = out.moments.mutable_data_ptr<T>(),
      .overlaps = want_overlaps ? out.overlaps.mutable_data_ptr<T>() : nullptr,
      .jacobian = directions ? out.jacobian.mutable_data_ptr<T>() : nullptr};
  for_slices(Slices(p.n_prompts), [&](int64_t, int64_t begin, int64_t end) {
    kernels().prompts<T>().moments_forward(params, begin, end);
    if (after) after(out.moments, begin, end);
  });
  return out;
}

template <class T>
MomentsGradient moments_backward_cpu(const at::Tensor& grad_moments, const std::optional<at::Tensor>& grad_overlaps,
                                     const at::Tensor& context, const at::Tensor& query, const at::Tensor& kq,
                                     const std::optional<at::Tensor>& lengths, bool needs_context, bool needs_query,
                                     bool needs_kq) {
  const Prompts<T> prompts(context, query, kq, lengths);
  const PromptParams<T>& p = prompts.params;
  const at::Tensor by_prompt = grad_moments.contiguous(), kq_rows = kq.contiguous();
  at::Tensor overlaps;
  if (grad_overlaps) overlaps = grad_overlaps->contiguous();
  MomentsGradient out;
  if (needs_context) {
    // Nobody writes past a prompt's length, nor anything without heads.
    const bool written = !lengths && p.heads > 0;
    out.context = written ? at::empty(context.sizes(), kq.options()) : at::zeros(context.sizes(), kq.options());
  }
  if (needs_query) out.query = at::empty({p.n_prompts, p.dim}, kq.options());
  const Slices slices(p.n_prompts, p.n_prompts * p.context_length * p.dim, p.heads * p.dim * p.dim);
  at::Tensor partial;  // (slices, D, H, D)
  if (needs_kq) partial = partial_sums(slices, {p.dim, p.heads, p.dim}, kq.options());
  const MomentsBackwardParams<T> params = {
      .prompts = p,
      .kq = kq_rows.const_data_ptr<T>(),
      .grad_moments = by_prompt.const_data_ptr<T>(),
      .grad_overlaps = grad_overlaps ? overlaps.const_data_ptr<T>() : nullptr,
      .grad_context = needs_context ? out.context.mutable_data_ptr<T>() : nullptr,
      .grad_query = needs_query ? out.query.mutable_data_ptr<T>() : nullptr};
  for_slices(slices, [&](int64_t slice, int64_t begin, int64_t end) {
    T* grad_kq = needs_kq ? partial.mutable_data_ptr<T>() + slice * p.heads * p.dim * p.dim : nullptr;
    kernels().prompts<T>().moments_backward(params, begin, end, grad_kq);
  });
  if (needs_kq) out.kq = sum_slices<T>(partial).permute({1, 2, 0}).contiguous();
  return out;
}

template Moments moments_cpu<float>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                    const std::optional<at::Tensor>&, bool, const std::optional<at::Tensor>&,
                                    const AfterMoments&);
template Moments moments_cpu<double>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                     const std::optional<at::Tensor>&, bool, const std::optional<at::Tensor>&,
                                     const AfterMoments&);
template MomentsGradient moments_backward_cpu<float>(const at::Tensor&, const std::optional<at::Tensor>&,
                                                     const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                     const std::optional<at::Tensor>&, bool, bool, bool);
template MomentsGradient moments_backward_cpu<double>(const at::Tensor&, const std::optional<at::Tensor>&,
                                                      const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                      const std::optional<at::Tensor>&, bool, bool, bool);

namespace {

at::Tensor finished(const at::Tensor& computed, const at::Tensor& like) {
  return computed.defined() ? computed.to(like.scalar_type()) : at::empty({0}, like.options());
}

std::tuple<at::Tensor, at::Tensor> prompt_moments(const at::Tensor& context, const at::Tensor& query,
                                                  const at::Tensor& kq, const std::optional<at::Tensor>& lengths,
                                                  bool want_overlaps) {
  check_prompts(context, query, kq, 3, lengths);
  const auto dtype = compute_dtype(context.scalar_type());
  const auto compute = dtype == at::kDouble ? moments_cpu<double> : moments_cpu<float>;
  const Moments out = compute(context, query.to(dtype), kq.to(dtype), lengths, want_overlaps, std::nullopt, nullptr);
  return {finished(out.moments, context), finished(out.overlaps, context)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> prompt_moments_backward(
    const at::Tensor& grad_moments, const std::optional<at::Tensor>& grad_overlaps, const at::Tensor& context,
    const at::Tensor& query, const at::Tensor& kq, const std::optional<at::Tensor>& lengths,
    std::array<bool, 3> needs) {
  check_prompts(context, query, kq, 3, lengths);
  const int64_t n = query.size(0), heads = kq.size(0);
  check_shape("grad_moments", grad_moments, {n, heads, query.size(1)});
  if (grad_overlaps) check_shape("grad_overlaps", *grad_overlaps, {n, heads, heads});
  const auto dtype = compute_dtype(context.scalar_type());
  const auto compute = dtype == at::kDouble ? moments_backward_cpu<double> : moments_backward_cpu<float>;
  std::optional<at::Tensor> overlaps;
  if (grad_overlaps) overlaps = grad_overlaps->to(dtype);
  const MomentsGradient out = compute(grad_moments.to(dtype), overlaps, context, query.to(dtype), kq.to(dtype),
                                      lengths, needs[0], needs[1], needs[2]);
  return {finished(out.context, context), finished(out.query, context), finished(out.kq, context)};
}

}  // namespace
}  // namespace mhicl

TORCH_LIBRARY_IMPL(mhicl, CPU, m) {
  m.impl("prompt_moments", mhicl::prompt_moments);
  m.impl("prompt_moments_backward", mhicl::prompt_moments_backward);
}
