// The sampling operators on the CPU: prompts are shared out over threads.

#include <algorithm>

#include "../sampler_operators.h"
#include "kernels.h"
#include "parallel.h"

namespace mhicl {
namespace {

// Calls body(begin, end) for blocks of prompts that are worth a thread's while.
template <class Body>
void for_prompt_blocks(int64_t n_prompts, int64_t numbers_a_prompt, const Body& body) {
  constexpr int64_t numbers_a_block = 1 << 15;
  const int64_t block = std::max<int64_t>(1, numbers_a_block / std::max<int64_t>(1, numbers_a_prompt));
  parallel_for((n_prompts + block - 1) / block,
               [&](int64_t i) { body(i * block, std::min(n_prompts, (i + 1) * block)); });
}

struct Cpu {
  template <class T>
  static void multi_task(const at::Tensor&, const MultiTaskParams<T>& params, int64_t n_prompts) {
    const SamplerKernels<T>& sampler = kernels().sampler<T>();
    for_prompt_blocks(n_prompts, (params.context_length + 1) * (params.dim_x + params.n_tasks),
                      [&](int64_t begin, int64_t end) { sampler.multi_task(params, begin, end); });
  }

  template <class T>
  static void covariates(const at::Tensor&, const CovariatesParams<T>& params, int64_t n_prompts) {
    const SamplerKernels<T>& sampler = kernels().sampler<T>();
    for_prompt_blocks(n_prompts, (params.context_length + 1) * params.dim_x,
                      [&](int64_t begin, int64_t end) { sampler.covariates(params, begin, end); });
  }

  static void words(const at::Tensor&, uint32_t* out, int64_t count, const philox::Stream& stream, int64_t first) {
    kernels().philox_words(out, count, stream, first);
  }

  template <class T>
  static void normals(const at::Tensor&, T* out, int64_t count, const philox::Stream& stream, int64_t first) {
    kernels().sampler<T>().normals(out, count, stream, first);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(mhicl, CPU, m) { SamplerOperators<Cpu>::implement(m); }

}  // namespace mhicl
