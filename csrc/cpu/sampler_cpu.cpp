// The sampling operators on the CPU: check, fill the struct, and share the prompts out over threads.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "kernels.h"
#include "parallel.h"

namespace mhicl {
namespace {

void check_like(const at::Tensor& tensor, const char* name, at::IntArrayRef sizes, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), name, " must be on the CPU, got device ", tensor.device());
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must have dtype ", dtype, ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, " must have shape ", sizes, ", got ", tensor.sizes());
  TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " must be contiguous, got strides ", tensor.strides());
}

void check_floating(const at::Tensor& tensor, const char* name) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, name, " must be float32 or float64, got ", dtype);
}

// The seed keeps its 64 bits as a signed number.
PromptRange prompt_range(int64_t seed, int64_t step, int64_t first_prompt, int64_t n_prompts) {
  TORCH_CHECK_VALUE(step >= 0 && step < (int64_t(1) << 32), "step must lie in [0, 2**32), got ", step);
  TORCH_CHECK_VALUE(first_prompt >= 0 && first_prompt <= (int64_t(1) << 56) - n_prompts,
                    "prompts must lie in [0, 2**56), got first_prompt=", first_prompt, " with n_prompts=", n_prompts);
  return {uint64_t(seed), uint32_t(step), uint64_t(first_prompt)};
}

constexpr int64_t kMaxElements = int64_t(philox::kWords) << 32;  // what 32 bits of block index address

// A stream of `columns` numbers for each token of the context, after those that stand before them.
void check_stream_length(int64_t before, int64_t length, int64_t columns) {
  const bool fits = before <= kMaxElements && length <= kMaxElements &&
                    (columns == 0 || philox::tiled_size(length, 1) <= (kMaxElements - before) / columns);
  TORCH_CHECK_VALUE(fits, "a prompt's streams hold 2**34 random numbers each, got ", length, " tokens of ", columns,
                    " numbers", before > 0 ? " after others" : "");
}

// Calls body(begin, end) for blocks of prompts that are worth a thread's while.
template <class Body>
void for_prompt_blocks(int64_t n_prompts, int64_t numbers_a_prompt, const Body& body) {
  constexpr int64_t numbers_a_block = 1 << 15;
  const int64_t block = std::max<int64_t>(1, numbers_a_block / std::max<int64_t>(1, numbers_a_prompt));
  parallel_for((n_prompts + block - 1) / block,
               [&](int64_t i) { body(i * block, std::min(n_prompts, (i + 1) * block)); });
}

void sample_multi_task(const at::Tensor& context, const at::Tensor& query, const at::Tensor& target,
                       const at::Tensor& coefficient_scale, const std::optional<at::Tensor>& covariance_factor,
                       int64_t seed, int64_t step, int64_t first_prompt, double noise_std, bool noisy_target) {
  const auto dtype = context.scalar_type();
  check_floating(context, "context");
  TORCH_CHECK_VALUE(context.dim() == 3, "context must be (prompts, length, dim), got shape ", context.sizes());
  TORCH_CHECK_VALUE(coefficient_scale.dim() == 2, "coefficient_scale must be (tasks, covariates), got shape ",
                    coefficient_scale.sizes());
  const int64_t n_prompts = context.size(0), length = context.size(1);
  const int64_t n_tasks = coefficient_scale.size(0), dim_x = coefficient_scale.size(1);
  const int64_t dim = dim_x + n_tasks;
  TORCH_CHECK_VALUE(n_tasks > 0 && dim_x > 0, "coefficient_scale must not be empty, got shape ",
                    coefficient_scale.sizes());
  check_like(context, "context", {n_prompts, length, dim}, dtype);
  check_like(query, "query", {n_prompts, dim}, dtype);
  check_like(target, "target", {n_prompts, n_tasks}, dtype);
  check_like(coefficient_scale, "coefficient_scale", {n_tasks, dim_x}, dtype);
  if (covariance_factor) check_like(*covariance_factor, "covariance_factor", {dim_x, dim_x}, dtype);
  check_stream_length(0, length, dim_x);
  check_stream_length(philox::first_context_noise(dim_x, n_tasks), length, n_tasks);
  const PromptRange range = prompt_range(seed, step, first_prompt, n_prompts);

  AT_DISPATCH_FLOATING_TYPES(dtype, "sample_multi_task", [&] {
    const MultiTaskParams<scalar_t> params{
        range,
        length,
        dim_x,
        n_tasks,
        coefficient_scale.const_data_ptr<scalar_t>(),
        covariance_factor ? covariance_factor->const_data_ptr<scalar_t>() : nullptr,
        scalar_t(noise_std),
        noisy_target,
        context.mutable_data_ptr<scalar_t>(),
        query.mutable_data_ptr<scalar_t>(),
        target.mutable_data_ptr<scalar_t>(),
    };
    const SamplerKernels<scalar_t>& sampler = kernels().sampler<scalar_t>();
    for_prompt_blocks(n_prompts, (length + 1) * dim,
                      [&](int64_t begin, int64_t end) { sampler.multi_task(params, begin, end); });
  });
}

void sample_covariates(const at::Tensor& xi, const at::Tensor& xi_query, int64_t seed, int64_t step,
                       int64_t first_prompt) {
  check_floating(xi, "xi");
  TORCH_CHECK_VALUE(xi.dim() == 3, "xi must be (prompts, length, covariates), got shape ", xi.sizes());
  const int64_t n_prompts = xi.size(0), length = xi.size(1), dim_x = xi.size(2);
  check_like(xi, "xi", {n_prompts, length, dim_x}, xi.scalar_type());
  check_like(xi_query, "xi_query", {n_prompts, dim_x}, xi.scalar_type());
  check_stream_length(0, length, dim_x);
  const PromptRange range = prompt_range(seed, step, first_prompt, n_prompts);

  AT_DISPATCH_FLOATING_TYPES(xi.scalar_type(), "sample_covariates", [&] {
    const CovariatesParams<scalar_t> params{
        range, length, dim_x, xi.mutable_data_ptr<scalar_t>(), xi_query.mutable_data_ptr<scalar_t>(),
    };
    const SamplerKernels<scalar_t>& sampler = kernels().sampler<scalar_t>();
    for_prompt_blocks(n_prompts, (length + 1) * dim_x,
                      [&](int64_t begin, int64_t end) { sampler.covariates(params, begin, end); });
  });
}

// One stream, of which out takes the elements from first_element on.
philox::Stream checked_stream(const at::Tensor& out, int64_t seed, int64_t step, int64_t prompt, int64_t stream,
                              int64_t first_element) {
  TORCH_CHECK_VALUE(stream >= 0 && stream < 256, "stream must lie in [0, 256), got ", stream);
  TORCH_CHECK_VALUE(first_element >= 0 && first_element <= kMaxElements - out.numel(),
                    "elements must lie in [0, 2**34), got first_element=", first_element, ", count=", out.numel());
  return prompt_range(seed, step, prompt, 1).stream(0, uint32_t(stream));
}

void philox_words(const at::Tensor& out, int64_t seed, int64_t step, int64_t prompt, int64_t stream,
                  int64_t first_element) {
  check_like(out, "out", {out.numel()}, at::kInt);
  const philox::Stream elements = checked_stream(out, seed, step, prompt, stream, first_element);
  kernels().philox_words(reinterpret_cast<uint32_t*>(out.mutable_data_ptr<int32_t>()), out.numel(), elements,
                         first_element);
}

void philox_normals(const at::Tensor& out, int64_t seed, int64_t step, int64_t prompt, int64_t stream,
                    int64_t first_element) {
  check_floating(out, "out");
  check_like(out, "out", {out.numel()}, out.scalar_type());
  const philox::Stream elements = checked_stream(out, seed, step, prompt, stream, first_element);
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "philox_normals", [&] {
    kernels().sampler<scalar_t>().normals(out.mutable_data_ptr<scalar_t>(), out.numel(), elements, first_element);
  });
}

TORCH_LIBRARY_IMPL(mhicl, CPU, m) {
  m.impl("sample_multi_task", sample_multi_task);
  m.impl("sample_covariates", sample_covariates);
  m.impl("philox_words", philox_words);
  m.impl("philox_normals", philox_normals);
}

}  // namespace
}  // namespace mhicl
