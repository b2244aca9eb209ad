// The sampling operators on the GPU.

#include "../../sampler_operators.h"
#include "../binding.h"
#include "plan.h"
#include "sampler.h"

namespace mhicl::cuda {
namespace {

struct Gpu {
  template <class T>
  static void multi_task(const at::Tensor& tensor, const MultiTaskParams<T>& params, int64_t n_prompts) {
    if (n_prompts == 0) return;
    const Place place(tensor);
    const DeviceLimits limits = device_limits();
    TORCH_CHECK_VALUE(can_be_planned(params, limits), "prompts are too wide for the GPU's sampler: ", params.dim_x,
                      " covariates and ", params.n_tasks, " tasks");
    const at::Tensor memory = workspace(tensor, sampler_workspace_bytes(params, n_prompts, limits));
    C10_CUDA_CHECK(sample_prompts(params, n_prompts, limits, memory.mutable_data_ptr(), place.stream()));
  }

  template <class T>
  static void covariates(const at::Tensor& tensor, const CovariatesParams<T>& params, int64_t n_prompts) {
    multi_task(tensor,
               MultiTaskParams<T>{params.range, params.context_length, params.dim_x, 0, nullptr, nullptr, T(0), false,
                                  params.xi, params.xi_query, nullptr},
               n_prompts);
  }

  template <class Value>
  static void elements(const at::Tensor& tensor, Value* out, int64_t count, const philox::Stream& stream,
                       int64_t first) {
    const Place place(tensor);
    C10_CUDA_CHECK(stream_elements(out, count, stream, first, device_limits(), place.stream()));
  }

  static void words(const at::Tensor& tensor, uint32_t* out, int64_t count, const philox::Stream& stream,
                    int64_t first) {
    elements(tensor, out, count, stream, first);
  }

  template <class T>
  static void normals(const at::Tensor& tensor, T* out, int64_t count, const philox::Stream& stream, int64_t first) {
    elements(tensor, out, count, stream, first);
  }
};

}  // namespace
}  // namespace mhicl::cuda

MHICL_GPU_OPERATORS(m) { mhicl::SamplerOperators<mhicl::cuda::Gpu>::implement(m); }
