#include "moments_cuda.h"

namespace mhicl::cuda {
namespace {

// Positions in the type of the kernels' pointer, on the context's device.
std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& lengths) {
  return lengths ? std::optional(lengths->contiguous()) : std::nullopt;
}

// All but the projected queries.
template <class T>
GivenPrompts<T> given_prompts(const at::Tensor& context, const at::Tensor& kq, const std::optional<at::Tensor>& lengths) {
  return {.n_prompts = context.size(0),
          .context_length = context.size(1),
          .dim = context.size(2),
          .heads = kq.size(0),
          .context = context.const_data_ptr(),
          .storage = storage_of(context),
          .prompt_stride = context.stride(0),
          .position_stride = context.stride(1),
          .element_stride = context.stride(2),
          .lengths = lengths ? lengths->const_data_ptr<int64_t>() : nullptr,
          .projected = nullptr,
          .tf32 = tf32_allowed()};
}

// r_h = KQ_h z_q, (N, H, D).
template <class T>
at::Tensor project(const at::Tensor& query, const at::Tensor& kq, cudaStream_t stream) {
  const int64_t n = query.size(0), heads = kq.size(0), dim = kq.size(1);
  at::Tensor projected = at::empty({n, heads, dim}, query.options());
  const GemmParams<T> product = {.batch = 1,
                                 .rows = n,
                                 .cols = heads * dim,
                                 .depth = dim,
                                 .a = {query.const_data_ptr<T>(), dim, 1, 0},
                                 .b = {kq.const_data_ptr<T>(), 1, dim, 0},
                                 .c = {projected.mutable_data_ptr<T>(), heads * dim, 1, 0},
                                 .alpha = T(1),
                                 .accumulate = false,
                                 .tf32 = tf32_allowed()};
  C10_CUDA_CHECK(gemm(product, stream));
  return projected;
}

void check_room(bool fits, const at::Tensor& context, int64_t heads, const DeviceLimits& limits) {
  TORCH_CHECK_VALUE(fits, "a prompt of ", context.size(2), " dims with ", heads, " heads does not fit in the ",
                    limits.shared_per_block, " bytes of shared memory that a block of this GPU has");
}

// K of tokens without numbers, which all have the same weight; (N, H, H).
at::Tensor uniform_overlaps(const at::Tensor& context, int64_t heads, const std::optional<at::Tensor>& lengths,
                            const at::TensorOptions& options) {
  const int64_t n = context.size(0), length = context.size(1);
  const at::Tensor counts = lengths ? lengths->clamp(0, length).to(options) : at::full({n}, length, options);
  return at::where(counts > 0, counts.reciprocal(), 0).view({n, 1, 1}).expand({n, heads, heads}).contiguous();
}

}  // namespace

template <class T>
Moments moments_cuda(const at::Tensor& context, const at::Tensor& query, const at::Tensor& kq,
                     const std::optional<at::Tensor>& given_lengths, bool want_overlaps,
                     const std::optional<at::Tensor>& directions, cudaStream_t stream) {
  const auto lengths = contiguous(given_lengths);
  const int64_t n = query.size(0), heads = kq.size(0), dim = kq.size(1);
  Moments out = {at::empty({n, heads, dim}, kq.options()), {}, {}};
  if (want_overlaps) {
    out.overlaps = dim == 0 ? uniform_overlaps(context, heads, lengths, kq.options())
                            : at::empty({n, heads, heads}, kq.options());
  }
  if (directions) out.jacobian = at::empty({n, directions->size(1), heads, dim}, kq.options());
  MomentsCall<T> call = {.prompts = given_prompts<T>(context, kq, lengths),
                               .directions = directions ? directions->size(1) : 0,
                               .direction_rows = directions ? directions->const_data_ptr<T>() : nullptr,
                               .moments = out.moments.mutable_data_ptr<T>(),
                               .overlaps = want_overlaps ? out.overlaps.mutable_data_ptr<T>() : nullptr,
                               .jacobian = directions ? out.jacobian.mutable_data_ptr<T>() : nullptr};
  const DeviceLimits limits = device_limits();
  check_room(moments_fit(call, limits), context, heads, limits);
  const at::Tensor projected = project<T>(query, kq, stream);
  call.prompts.projected = projected.const_data_ptr<T>();
  C10_CUDA_CHECK(moments(call, limits, stream));
  return out;
}

template <class T>
MomentsGradient moments_gradient_cuda(const at::Tensor& grad_moments, const std::optional<at::Tensor>& grad_overlaps,
                                      const at::Tensor& context, const at::Tensor& query, const at::Tensor& kq,
                                      const std::optional<at::Tensor>& given_lengths, bool needs_projected,
                                      bool needs_context, cudaStream_t stream) {
  const auto lengths = contiguous(given_lengths);
  const at::Tensor by_prompt = grad_moments.contiguous();
  at::Tensor overlap_weights;  // K is symmetric: a head's weights are multiplied by its row and its column of ∂K
  if (grad_overlaps) overlap_weights = (*grad_overlaps + grad_overlaps->transpose(1, 2)).contiguous();
  MomentsGradient out;
  if (needs_projected) out.projected = at::empty_like(by_prompt);
  if (needs_context) {
    out.context = kq.size(0) > 0 ? at::empty(context.sizes(), kq.options()) : at::zeros(context.sizes(), kq.options());
  }
  MomentsGradientCall<T> call = {
      .prompts = given_prompts<T>(context, kq, lengths),
      .grad_moments = by_prompt.const_data_ptr<T>(),
      .overlap_weights = grad_overlaps ? overlap_weights.const_data_ptr<T>() : nullptr,
      .grad_projected = needs_projected ? out.projected.template mutable_data_ptr<T>() : nullptr,
      .grad_context = needs_context ? out.context.template mutable_data_ptr<T>() : nullptr};
  const DeviceLimits limits = device_limits();
  check_room(moments_gradient_fits(call, limits), context, kq.size(0), limits);
  const at::Tensor projected = project<T>(query, kq, stream);
  call.prompts.projected = projected.const_data_ptr<T>();
  C10_CUDA_CHECK(moments_gradient(call, limits, stream));
  return out;
}

template <class T>
at::Tensor query_gradient(const at::Tensor& grad_projected, const at::Tensor& kq, cudaStream_t stream) {
  const int64_t n = grad_projected.size(0), row = kq.size(0) * kq.size(1), dim = kq.size(2);
  at::Tensor gradient = at::empty({n, dim}, kq.options());
  const GemmParams<T> product = {.batch = 1,
                                 .rows = n,
                                 .cols = dim,
                                 .depth = row,
                                 .a = {grad_projected.const_data_ptr<T>(), row, 1, 0},
                                 .b = {kq.const_data_ptr<T>(), dim, 1, 0},
                                 .c = {gradient.mutable_data_ptr<T>(), dim, 1, 0},
                                 .alpha = T(1),
                                 .accumulate = false,
                                 .tf32 = tf32_allowed()};
  C10_CUDA_CHECK(gemm(product, stream));
  return gradient;
}

template <class T>
at::Tensor kq_gradient(const at::Tensor& grad_projected, const at::Tensor& query, cudaStream_t stream) {
  const int64_t n = query.size(0), heads = grad_projected.size(1), dim = query.size(1), row = heads * dim;
  const GemmParams<T> product = {.batch = 1,
                                 .rows = row,
                                 .cols = dim,
                                 .depth = n,
                                 .a = {grad_projected.const_data_ptr<T>(), 1, row, 0},
                                 .b = {query.const_data_ptr<T>(), dim, 1, 0},
                                 .c = {},
                                 .alpha = T(1),
                                 .accumulate = false,
                                 .tf32 = tf32_allowed()};
  return sum_over_prompts(product, query, stream).view({heads, dim, dim});
}

#define MHICL_INSTANTIATE(T)                                                                                          \
  template Moments moments_cuda<T>(const at::Tensor&, const at::Tensor&, const at::Tensor&,                          \
                                   const std::optional<at::Tensor>&, bool, const std::optional<at::Tensor>&,         \
                                   cudaStream_t);                                                                    \
  template MomentsGradient moments_gradient_cuda<T>(const at::Tensor&, const std::optional<at::Tensor>&,             \
                                                    const at::Tensor&, const at::Tensor&, const at::Tensor&,         \
                                                    const std::optional<at::Tensor>&, bool, bool, cudaStream_t);     \
  template at::Tensor query_gradient<T>(const at::Tensor&, const at::Tensor&, cudaStream_t);                         \
  template at::Tensor kq_gradient<T>(const at::Tensor&, const at::Tensor&, cudaStream_t);
MHICL_INSTANTIATE(float)
MHICL_INSTANTIATE(double)
#undef MHICL_INSTANTIATE

namespace {

std::tuple<at::Tensor, at::Tensor> prompt_moments(const at::Tensor& context, const at::Tensor& query,
                                                  const at::Tensor& kq, const std::optional<at::Tensor>& lengths,
                                                  bool want_overlaps) {
  check_prompts(context, query, kq, 3, lengths);
  const Place place(context);
  const auto dtype = compute_dtype(context.scalar_type());
  const auto compute = dtype == at::kDouble ? moments_cuda<double> : moments_cuda<float>;
  const Moments out = compute(context, query.to(dtype).contiguous(), kq.to(dtype).contiguous(), lengths, want_overlaps,
                              std::nullopt, place.stream());
  return {or_empty(out.moments, context), or_empty(out.overlaps, context)};
}

template <class T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> moments_backward(
    const at::Tensor& grad_moments, const std::optional<at::Tensor>& grad_overlaps, const at::Tensor& context,
    const at::Tensor& query, const at::Tensor& kq, const std::optional<at::Tensor>& lengths,
    const std::array<bool, 3>& needs, cudaStream_t stream) {
  const MomentsGradient grad = moments_gradient_cuda<T>(grad_moments, grad_overlaps, context, query, kq, lengths,
                                                        needs[1] || needs[2], needs[0], stream);
  at::Tensor grad_query, grad_kq;
  if (needs[1]) grad_query = query_gradient<T>(grad.projected, kq, stream);
  if (needs[2]) grad_kq = kq_gradient<T>(grad.projected, query, stream);
  return {or_empty(grad.context, context), or_empty(grad_query, context), or_empty(grad_kq, context)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> prompt_moments_backward(
    const at::Tensor& grad_moments, const std::optional<at::Tensor>& grad_overlaps, const at::Tensor& context,
    const at::Tensor& query, const at::Tensor& kq, const std::optional<at::Tensor>& lengths,
    std::array<bool, 3> needs) {
  check_prompts(context, query, kq, 3, lengths);
  const int64_t n = query.size(0), heads = kq.size(0);
  check_shape("grad_moments", grad_moments, {n, heads, query.size(1)});
  if (grad_overlaps) check_shape("grad_overlaps", *grad_overlaps, {n, heads, heads});
  const Place place(context);
  const auto dtype = compute_dtype(context.scalar_type());
  std::optional<at::Tensor> overlaps;
  if (grad_overlaps) overlaps = grad_overlaps->to(dtype);
  const auto compute = dtype == at::kDouble ? moments_backward<double> : moments_backward<float>;
  return compute(grad_moments.to(dtype), overlaps, context, query.to(dtype).contiguous(), kq.to(dtype).contiguous(),
                 lengths, needs, place.stream());
}

}  // namespace
}  // namespace mhicl::cuda

MHICL_GPU_OPERATORS(m) {
  m.impl("prompt_moments", mhicl::cuda::prompt_moments);
  m.impl("prompt_moments_backward", mhicl::cuda::prompt_moments_backward);
}
