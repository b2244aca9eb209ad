// The sampling operators: check the tensors, fill the kernels' structs, and hand them to a device. A device is a struct of
//   multi_task(tensor, params, n_prompts)  covariates(tensor, params, n_prompts)
//   words(tensor, out, count, stream, first)  normals(tensor, out, count, stream, first)
// where the tensor is one of those to be filled, and tells where it is.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <optional>

#include "library.h"
#include "sampler_params.h"

namespace mhicl {

inline constexpr int64_t kMaxElements = int64_t(philox::kWords) << 32;  // what 32 bits of block index address

inline void check_dense(const at::Tensor& tensor, const char* name, at::IntArrayRef sizes, const at::Tensor& like) {
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, " must be on ", like.device(), ", got device ",
                    tensor.device());
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), name, " must have dtype ", like.scalar_type(), ", got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, " must have shape ", sizes, ", got ", tensor.sizes());
  TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " must be contiguous, got strides ", tensor.strides());
}

inline void check_floating(const at::Tensor& tensor, const char* name) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, name, " must be float32 or float64, got ", dtype);
}

// A stream of `columns` numbers for each token of the context, after those that stand before them.
inline void check_stream_length(int64_t before, int64_t length, int64_t columns) {
  const bool fits = before <= kMaxElements && length <= kMaxElements &&
                    (columns == 0 || philox::tiled_size(length, 1) <= (kMaxElements - before) / columns);
  TORCH_CHECK_VALUE(fits, "a prompt's streams hold 2**34 random numbers each, got ", length, " tokens of ", columns,
                    " numbers", before > 0 ? " after others" : "");
}

// The seed keeps its 64 bits as a signed number.
inline PromptRange prompt_range(int64_t seed, int64_t step, int64_t first_prompt, int64_t n_prompts) {
  TORCH_CHECK_VALUE(step >= 0 && step < (int64_t(1) << 32), "step must lie in [0, 2**32), got ", step);
  TORCH_CHECK_VALUE(first_prompt >= 0 && first_prompt <= (int64_t(1) << 56) - n_prompts,
                    "prompts must lie in [0, 2**56), got first_prompt=", first_prompt, " with n_prompts=", n_prompts);
  return {uint64_t(seed), uint32_t(step), uint64_t(first_prompt)};
}

// One stream, of which out takes the elements from first_element on.
inline philox::Stream checked_stream(const at::Tensor& out, int64_t seed, int64_t step, int64_t prompt, int64_t stream,
                                     int64_t first_element) {
  check_dense(out, "out", {out.numel()}, out);
  TORCH_CHECK_VALUE(stream >= 0 && stream < 256, "stream must lie in [0, 256), got ", stream);
  TORCH_CHECK_VALUE(first_element >= 0 && first_element <= kMaxElements - out.numel(),
                    "elements must lie in [0, 2**34), got first_element=", first_element, ", count=", out.numel());
  return prompt_range(seed, step, prompt, 1).stream(0, uint32_t(stream));
}

template <class Device>
struct SamplerOperators {
  static void sample_multi_task(const at::Tensor& context, const at::Tensor& query, const at::Tensor& target,
                                const at::Tensor& coefficient_scale, const std::optional<at::Tensor>& covariance_factor,
                                int64_t seed, int64_t step, int64_t first_prompt, double noise_std, bool noisy_target) {
    check_floating(context, "context");
    TORCH_CHECK_VALUE(context.dim() == 3, "context must be (prompts, length, dim), got shape ", context.sizes());
    TORCH_CHECK_VALUE(coefficient_scale.dim() == 2, "coefficient_scale must be (tasks, covariates), got shape ",
                      coefficient_scale.sizes());
    const int64_t n_prompts = context.size(0), length = context.size(1);
    const int64_t n_tasks = coefficient_scale.size(0), dim_x = coefficient_scale.size(1), dim = dim_x + n_tasks;
    TORCH_CHECK_VALUE(n_tasks > 0 && dim_x > 0, "coefficient_scale must not be empty, got shape ",
                      coefficient_scale.sizes());
    check_dense(context, "context", {n_prompts, length, dim}, context);
    check_dense(query, "query", {n_prompts, dim}, context);
    check_dense(target, "target", {n_prompts, n_tasks}, context);
    check_dense(coefficient_scale, "coefficient_scale", {n_tasks, dim_x}, context);
    if (covariance_factor) check_dense(*covariance_factor, "covariance_factor", {dim_x, dim_x}, context);
    check_stream_length(0, length, dim_x);
    check_stream_length(philox::first_context_noise(dim_x, n_tasks), length, n_tasks);
    const PromptRange range = prompt_range(seed, step, first_prompt, n_prompts);

    AT_DISPATCH_FLOATING_TYPES(context.scalar_type(), "sample_multi_task", [&] {
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
      Device::multi_task(context, params, n_prompts);
    });
  }

  static void sample_covariates(const at::Tensor& xi, const at::Tensor& xi_query, int64_t seed, int64_t step,
                                int64_t first_prompt) {
    check_floating(xi, "xi");
    TORCH_CHECK_VALUE(xi.dim() == 3, "xi must be (prompts, length, covariates), got shape ", xi.sizes());
    const int64_t n_prompts = xi.size(0), length = xi.size(1), dim_x = xi.size(2);
    check_dense(xi, "xi", {n_prompts, length, dim_x}, xi);
    check_dense(xi_query, "xi_query", {n_prompts, dim_x}, xi);
    check_stream_length(0, length, dim_x);
    const PromptRange range = prompt_range(seed, step, first_prompt, n_prompts);

    if (xi_query.numel() == 0) return;
    AT_DISPATCH_FLOATING_TYPES(xi.scalar_type(), "sample_covariates", [&] {
      const CovariatesParams<scalar_t> params{
          range, length, dim_x, xi.mutable_data_ptr<scalar_t>(), xi_query.mutable_data_ptr<scalar_t>(),
      };
      Device::covariates(xi, params, n_prompts);
    });
  }

  static void philox_words(const at::Tensor& out, int64_t seed, int64_t step, int64_t prompt, int64_t stream,
                           int64_t first_element) {
    TORCH_CHECK_TYPE(out.scalar_type() == at::kInt, "out must have dtype Int, got ", out.scalar_type());
    const philox::Stream words = checked_stream(out, seed, step, prompt, stream, first_element);
    Device::words(out, reinterpret_cast<uint32_t*>(out.mutable_data_ptr<int32_t>()), out.numel(), words, first_element);
  }

  static void philox_normals(const at::Tensor& out, int64_t seed, int64_t step, int64_t prompt, int64_t stream,
                             int64_t first_element) {
    check_floating(out, "out");
    const philox::Stream normals = checked_stream(out, seed, step, prompt, stream, first_element);
    AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "philox_normals", [&] {
      Device::normals(out, out.mutable_data_ptr<scalar_t>(), out.numel(), normals, first_element);
    });
  }

  static void implement(torch::Library& m) {
    m.impl("sample_multi_task", sample_multi_task);
    m.impl("sample_covariates", sample_covariates);
    m.impl("philox_words", philox_words);
    m.impl("philox_normals", philox_normals);
  }
};

}  // namespace mhicl
