#include "sampled.cuh"

#include "step_in_chunks.cuh"
#include "sums.h"

namespace mhicl::cuda {
namespace {

template <class T>
struct SampledPlan {
  int64_t at_a_time, row;
  GemmParams<T> projections_gradient, outputs_gradient;
  T *queries, *projected, *averages, *errors, *losses;
  void* partial;

  SampledPlan(const StepPrompts<T>& p, int64_t n_prompts, bool tf32, Pieces& pieces)
      : at_a_time(prompts_at_a_time(n_prompts, (2 * p.heads * (p.dim_x + p.tasks) + p.dim_x) * int64_t(sizeof(T)))),
        row(p.heads * (p.dim_x + p.tasks)) {
    queries = pieces.take<T>(at_a_time * p.dim_x);
    projected = pieces.take<T>(at_a_time * row);
    averages = pieces.take<T>(at_a_time * row);
    errors = pieces.take<T>(at_a_time * p.tasks);
    losses = pieces.take<T>(at_a_time);
    projections_gradient = sum_over_prompts<T>(at_a_time, queries, p.dim_x, projected, row, row, tf32);
    outputs_gradient = sum_over_prompts<T>(at_a_time, errors, p.tasks, averages, row, row, tf32);
    partial = pieces.take<char>(std::max({sliced_workspace_bytes(projections_gradient),
                                          sliced_workspace_bytes(outputs_gradient),
                                          row_sums_workspace_bytes<T>({losses, at_a_time, 1})}));
  }

  static AttendDemand demand(const SampledParams<T>& params, int heads_at_once) {
    const StepPrompts<T>& p = params.prompts;
    return {.context_length = p.context_length,
            .rows = sampled_rows(p.dim_x, p.tasks, p.noise_std > T(0)),
            .heads = p.heads,
            .heads_at_once = heads_at_once,
            .all_weights = false,
            .own_products = false,
            .extra = sampled_extra(p.dim_x, p.tasks, padded_heads(p.heads, heads_at_once), heads_at_once),
            .element_size = int(sizeof(T))};
  }

  SampledChunk<T> chunk(const SampledParams<T>& params, const StepCall<T>& call, int64_t first, int64_t count) const {
    return {params, call.steps_done, first, count, projected, averages, errors, losses};
  }

  cudaError_t add_up(const SampledParams<T>& params, const StepCall<T>& call, int64_t first, int64_t count,
                     cudaStream_t stream) {
    const bool more = first > 0;
    double* const output_sums = call.sums + params.prompts.dim_x * row;
    projections_gradient.depth = outputs_gradient.depth = count;
    return first_error([&] { return sliced_gemm(projections_gradient, more, partial, call.sums, stream); },
                       [&] { return sliced_gemm(outputs_gradient, more, partial, output_sums, stream); },
                       [&] { return sum_rows<T>({losses, count, 1}, more, partial, call.loss, stream); });
  }
};

}  // namespace

template <class T>
int64_t sampled_workspace_bytes(const SampledParams<T>& params, int64_t n_prompts, const DeviceLimits& limits) {
  return plan_workspace_bytes<SampledPlan>(params, n_prompts, limits);
}

template <class T>
cudaError_t sampled_step(const SampledParams<T>& params, const StepCall<T>& call, cudaStream_t stream) {
  return step_in_chunks<SampledPlan>(params, call, stream, [](auto variant) {
    return sampled_kernel<T, variant.heads, variant.tf32>;
  });
}

template int64_t sampled_workspace_bytes(const SampledParams<float>&, int64_t, const DeviceLimits&);
template int64_t sampled_workspace_bytes(const SampledParams<double>&, int64_t, const DeviceLimits&);
template cudaError_t sampled_step(const SampledParams<float>&, const StepCall<float>&, cudaStream_t);
template cudaError_t sampled_step(const SampledParams<double>&, const StepCall<double>&, cudaStream_t);

}  // namespace mhicl::cuda
