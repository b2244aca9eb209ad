#include "conditional.cuh"

#include "../first_error.h"
#include "../prompts/variants.h"
#include "chunks.h"
#include "queries.h"
#include "step.h"
#include "sums.h"

namespace mhicl::cuda {
namespace {

template <class T>
AttendDemand demand_of(const ResidualParams<T>& params, int heads_at_once) {
  const StepPrompts<T>& p = params.prompts;
  const int64_t padded_heads = (p.heads + heads_at_once - 1) / heads_at_once * heads_at_once;
  const bool overlaps = p.noise_std > T(0);
  return {.context_length = p.context_length,
          .rows = p.dim_x,
          .heads = p.heads,
          .heads_at_once = heads_at_once,
          .all_weights = overlaps,
          .own_products = overlaps,
          .extra = conditional_extra(p.dim_x, p.tasks, padded_heads, heads_at_once, overlaps),
          .element_size = int(sizeof(T))};
}

template <class T>
struct ConditionalPlan {
  int64_t at_a_time, row;
  GemmParams<T> projections_gradient, outputs_gradient;
  RowSums<T> overlap_sums, loss_sums;
  ProductSums<T> product_sums;
  T *queries, *projected, *vectors, *overlaps, *outputs, *losses;
  void* partial;

  ConditionalPlan(const StepPrompts<T>& p, int64_t n_prompts, bool tf32, Pieces& pieces)
      : at_a_time(prompts_at_a_time(n_prompts, (2 * (1 + p.heads) * p.dim_x + p.heads * p.heads) * int64_t(sizeof(T)))),
        row(p.heads * p.dim_x) {
    queries = pieces.take<T>(at_a_time * p.dim_x);
    projected = pieces.take<T>(at_a_time * row);
    vectors = pieces.take<T>(at_a_time * (1 + p.heads) * p.dim_x);
    overlaps = pieces.take<T>(p.noise_std > T(0) ? at_a_time * p.heads * p.heads : 0);
    outputs = pieces.take<T>(at_a_time * p.tasks);
    losses = pieces.take<T>(at_a_time);
    projections_gradient = sum_over_prompts<T>(at_a_time, queries, p.dim_x, projected, row, row, tf32);
    const T* const averages = vectors == nullptr ? nullptr : vectors + p.dim_x;
    outputs_gradient = sum_over_prompts<T>(at_a_time, outputs, p.tasks, averages, row, row + p.dim_x, tf32);
    overlap_sums = {overlaps, at_a_time, p.noise_std > T(0) ? p.heads * p.heads : 0};
    loss_sums = {losses, at_a_time, 1};
    product_sums = {vectors, at_a_time, 1 + p.heads, p.dim_x};
    partial = pieces.take<char>(std::max({sliced_workspace_bytes(projections_gradient),
                                          sliced_workspace_bytes(outputs_gradient), row_sums_workspace_bytes(overlap_sums),
                                          row_sums_workspace_bytes(loss_sums), product_sums_workspace_bytes(product_sums)}));
  }

  void set_count(int64_t count) {
    projections_gradient.depth = outputs_gradient.depth = count;
    overlap_sums.count = loss_sums.count = product_sums.count = count;
  }
};

}  // namespace

template <class T>
int64_t conditional_workspace_bytes(const ResidualParams<T>& params, int64_t n_prompts, const DeviceLimits& limits) {
  return with_variant<T>(params.prompts.heads, false, [&](auto variant) -> int64_t {
    AttendLayout layout;
    if (!make_layout(demand_of(params, variant.heads), limits, layout)) return 0;
    Pieces pieces(nullptr);
    const ConditionalPlan<T> plan(params.prompts, n_prompts, false, pieces);
    return pieces.bytes();
  });
}

template <class T>
cudaError_t conditional_step(const ResidualParams<T>& params, const StepCall<T>& call, cudaStream_t stream) {
  return with_variant<T>(params.prompts.heads, call.tf32, [&](auto variant) {
    const StepPrompts<T>& p = params.prompts;
    AttendLayout layout;
    if (!make_layout(demand_of(params, variant.heads), call.limits, layout)) return cudaErrorInvalidValue;
    Pieces pieces(call.workspace);
    ConditionalPlan<T> plan(p, call.n_prompts, call.tf32, pieces);
    const ResidualSums<double> sums(params, call.sums);
    cudaError_t error = cudaSuccess;
    for (int64_t first = 0; first < call.n_prompts && error == cudaSuccess; first += plan.at_a_time) {
      const int64_t count = std::min(plan.at_a_time, call.n_prompts - first);
      const bool more = first > 0;
      const QueryChunk<T> queries = {p.range,  call.steps_done, first, count, p.dim_x,
                                     plan.row, plan.queries,    plan.projected};
      const ConditionalChunk<T> chunk = {params, call.steps_done, first, count, plan.projected, plan.vectors,
                                         plan.overlaps, plan.outputs, plan.losses};
      plan.set_count(count);
      error = first_error(
          [&] { return draw_queries(queries, stream); },
          [&] { return gemm(projection(queries, params.projections, call.tf32), stream); },
          [&] {
            const dim3 blocks{unsigned(count)}, threads{unsigned(layout.warps * kWarp)};
            return launch(conditional_kernel<T, variant.heads, variant.tf32>, blocks, threads, layout.bytes, stream, chunk,
                          layout);
          },
          [&] { return sliced_gemm(plan.projections_gradient, more, plan.partial, sums.projections, stream); },
          [&] { return sum_products(plan.product_sums, more, plan.partial, sums.products, stream); },
          [&] { return sum_rows(plan.overlap_sums, more, plan.partial, sums.overlaps, stream); },
          [&] { return sliced_gemm(plan.outputs_gradient, more, plan.partial, sums.covariate_outputs, stream); },
          [&] { return sum_rows(plan.loss_sums, more, plan.partial, call.loss, stream); });
    }
    return error;
  });
}

template int64_t conditional_workspace_bytes(const ResidualParams<float>&, int64_t, const DeviceLimits&);
template int64_t conditional_workspace_bytes(const ResidualParams<double>&, int64_t, const DeviceLimits&);
template cudaError_t conditional_step(const ResidualParams<float>&, const StepCall<float>&, cudaStream_t);
template cudaError_t conditional_step(const ResidualParams<double>&, const StepCall<double>&, cudaStream_t);

}  // namespace mhicl::cuda
