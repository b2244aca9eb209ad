// What the fused steps share on the host: so many prompts at a time, their queries projected, the estimate's kernel, its sums.
//
// A plan of an estimate says what it asks of shared memory, demand(params, heads at once); deals a workspace out when it is
// made; and has at_a_time, row, queries, projected, a Chunk's memory in chunk(…), and what comes behind the kernel in add_up(…).
#pragma once

#include "../first_error.h"
#include "../gemm.h"
#include "../prompts/passes.cuh"
#include "../prompts/variants.h"
#include "chunks.h"
#include "queries.h"
#include "step.h"

namespace mhicl::cuda {

inline int64_t padded_heads(int64_t heads, int heads_at_once) {
  return (heads + heads_at_once - 1) / heads_at_once * heads_at_once;
}

// 0 where a prompt finds no room.
template <template <class> class Plan, template <class> class Params, class T>
int64_t plan_workspace_bytes(const Params<T>& params, int64_t n_prompts, const DeviceLimits& limits) {
  return with_variant<T>(params.prompts.heads, false, [&](auto variant) -> int64_t {
    AttendLayout layout;
    if (!make_layout(Plan<T>::demand(params, variant.heads), limits, layout)) return 0;
    Pieces pieces(nullptr);
    const Plan<T> plan(params.prompts, n_prompts, false, pieces);
    return pieces.bytes();
  });
}

// kernel_of(variant) is the estimate's kernel.
template <template <class> class Plan, template <class> class Params, class T, class KernelOf>
cudaError_t step_in_chunks(const Params<T>& params, const StepCall<T>& call, cudaStream_t stream,
                           const KernelOf& kernel_of) {
  return with_variant<T>(params.prompts.heads, call.tf32, [&](auto variant) {
    AttendLayout layout;
    if (!make_layout(Plan<T>::demand(params, variant.heads), call.limits, layout)) return cudaErrorInvalidValue;
    Pieces pieces(call.workspace);
    Plan<T> plan(params.prompts, call.n_prompts, call.tf32, pieces);
    cudaError_t error = cudaSuccess;
    for (int64_t first = 0; first < call.n_prompts && error == cudaSuccess; first += plan.at_a_time) {
      const int64_t count = std::min(plan.at_a_time, call.n_prompts - first);
      const QueryChunk<T> queries = {.range = params.prompts.range,
                                     .steps_done = call.steps_done,
                                     .first = first,
                                     .count = count,
                                     .dim_x = params.prompts.dim_x,
                                     .row = plan.row,
                                     .queries = plan.queries,
                                     .projected = plan.projected};
      const dim3 blocks{unsigned(count)}, threads{unsigned(layout.warps * kWarp)};
      error = first_error([&] { return draw_queries(queries, stream); },
                          [&] { return gemm(projection(queries, params.projections, call.tf32), stream); },
                          [&] {
                            return launch(kernel_of(variant), blocks, threads, layout.bytes, stream,
                                          plan.chunk(params, call, first, count), layout);
                          },
                          [&] { return plan.add_up(params, call, first, count, stream); });
    }
    return error;
  });
}

}  // namespace mhicl::cuda
