#include "conditional.cuh"

#include "step_in_chunks.cuh"
#include "sums.h"

namespace mhicl::cuda {
namespace {

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

  static AttendDemand demand(const ResidualParams<T>& params, int heads_at_once) {
    const StepPrompts<T>& p = params.prompts;
    const bool overlaps = p.noise_std > T(0);
    return {.context_length = p.context_length,
            .rows = p.dim_x,
            .heads = p.heads,
            .heads_at_once = heads_at_once,
            .all_weights = overlaps,
            .own_products = overlaps,
            .extra = conditional_extra(p.dim_x, p.tasks, padded_heads(p.heads, heads_at_once), heads_at_once, overlaps),
            .element_size = int(sizeof(T))};
  }

  ConditionalChunk<T> chunk(const ResidualParams<T>& params, const StepCall<T>& call, int64_t first,
                            int64_t count) const {
    return {params, call.steps_done, first, count, projected, vectors, overlaps, outputs, losses};
  }

  cudaError_t add_up(const ResidualParams<T>& params, const StepCall<T>& call, int64_t first, int64_t count,
                     cudaStream_t stream) {
    const bool more = first > 0;
    const ResidualSums<double> sums(params, call.sums);
    projections_gradient.depth = outputs_gradient.depth = count;
    overlap_sums.count = loss_sums.count = product_sums.count = count;
    return first_error(
        [&] { return sliced_gemm(projections_gradient, more, partial, sums.projections, stream); },
        [&] { return sum_products(product_sums, more, partial, sums.products, stream); },
        [&] { return sum_rows(overlap_sums, more, partial, sums.overlaps, stream); },
        [&] { return sliced_gemm(outputs_gradient, more, partial, sums.covariate_outputs, stream); },
        [&] { return sum_rows(loss_sums, more, partial, call.loss, stream); });
  }
};

}  // namespace

template <class T>
int64_t conditional_workspace_bytes(const ResidualParams<T>& params, int64_t n_prompts, const DeviceLimits& limits) {
  return plan_workspace_bytes<ConditionalPlan>(params, n_prompts, limits);
}

template <class T>
cudaError_t conditional_step(const ResidualParams<T>& params, const StepCall<T>& call, cudaStream_t stream) {
  return step_in_chunks<ConditionalPlan>(params, call, stream, [](auto variant) {
    return conditional_kernel<T, variant.heads, variant.tf32>;
  });
}

template int64_t conditional_workspace_bytes(const ResidualParams<float>&, int64_t, const DeviceLimits&);
template int64_t conditional_workspace_bytes(const ResidualParams<double>&, int64_t, const DeviceLimits&);
template cudaError_t conditional_step(const ResidualParams<float>&, const StepCall<float>&, cudaStream_t);
template cudaError_t conditional_step(const ResidualParams<double>&, const StepCall<double>&, cudaStream_t);

}  // namespace mhicl::cuda
