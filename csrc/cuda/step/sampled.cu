#include "sampled.cuh"

#include "../first_error.h"
#include "../prompts/variants.h"
#include "chunks.h"
#include "queries.h"
#include "step.h"
#include "sums.h"

namespace mhicl::cuda {
namespace {

template <class T>
AttendDemand demand_of(const StepPrompts<T>& p, int heads_at_once) {
  const int64_t padded_heads = (p.heads + heads_at_once - 1) / heads_at_once * heads_at_once;
  return {.context_length = p.context_length,
          .rows = sampled_rows(p.dim_x, p.tasks, p.noise_std > T(0)),
          .heads = p.heads,
          .heads_at_once = heads_at_once,
          .all_weights = false,
          .own_products = false,
          .extra = sampled_extra(p.dim_x, p.tasks, padded_heads, heads_at_once),
          .element_size = int(sizeof(T))};
}

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
};

}  // namespace

template <class T>
int64_t sampled_workspace_bytes(const SampledParams<T>& params, int64_t n_prompts, const DeviceLimits& limits) {
  return with_variant<T>(params.prompts.heads, false, [&](auto variant) -> int64_t {
    AttendLayout layout;
    if (!make_layout(demand_of(params.prompts, variant.heads), limits, layout)) return 0;
    Pieces pieces(nullptr);
    const SampledPlan<T> plan(params.prompts, n_prompts, false, pieces);
    return pieces.bytes();
  });
}

template <class T>
cudaError_t sampled_step(const SampledParams<T>& params, const StepCall<T>& call, cudaStream_t stream) {
  return with_variant<T>(params.prompts.heads, call.tf32, [&](auto variant) {
    const StepPrompts<T>& p = params.prompts;
    AttendLayout layout;
    if (!make_layout(demand_of(p, variant.heads), call.limits, layout)) return cudaErrorInvalidValue;
    Pieces pieces(call.workspace);
    SampledPlan<T> plan(p, call.n_prompts, call.tf32, pieces);
    cudaError_t error = cudaSuccess;
    for (int64_t first = 0; first < call.n_prompts && error == cudaSuccess; first += plan.at_a_time) {
      const int64_t count = std::min(plan.at_a_time, call.n_prompts - first);
      const bool more = first > 0;
      const QueryChunk<T> queries = {p.range,  call.steps_done, first, count, p.dim_x,
                                     plan.row, plan.queries,    plan.projected};
      const SampledChunk<T> chunk = {params, call.steps_done, first, count, plan.projected, plan.averages, plan.errors,
                                     plan.losses};
      plan.projections_gradient.depth = plan.outputs_gradient.depth = count;
      error = first_error(
          [&] { return draw_queries(queries, stream); },
          [&] { return gemm(projection(queries, params.projections, call.tf32), stream); },
          [&] {
            const dim3 blocks{unsigned(count)}, threads{unsigned(layout.warps * kWarp)};
            return launch(sampled_kernel<T, variant.heads, variant.tf32>, blocks, threads, layout.bytes, stream, chunk,
                          layout);
          },
          [&] { return sliced_gemm(plan.projections_gradient, more, plan.partial, call.sums, stream); },
          [&] {
            return sliced_gemm(plan.outputs_gradient, more, plan.partial, call.sums + p.dim_x * plan.row, stream);
          },
          [&] { return sum_rows<T>({plan.losses, count, 1}, more, plan.partial, call.loss, stream); });
    }
    return error;
  });
}

template int64_t sampled_workspace_bytes(const SampledParams<float>&, int64_t, const DeviceLimits&);
template int64_t sampled_workspace_bytes(const SampledParams<double>&, int64_t, const DeviceLimits&);
template cudaError_t sampled_step(const SampledParams<float>&, const StepCall<float>&, cudaStream_t);
template cudaError_t sampled_step(const SampledParams<double>&, const StepCall<double>&, cudaStream_t);

}  // namespace mhicl::cuda
