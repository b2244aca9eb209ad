// mhicl::cuda_self_check: x + 1 on the GPU. It shows that a CUDA build launches its kernels on the right device and
// stream, with the least that can go wrong otherwise.

#include "binding.h"
#include "self_check.h"

namespace mhicl::cuda {
namespace {

at::Tensor cuda_self_check(const at::Tensor& x) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, "x must be float32, got ", x.scalar_type());
  const Place place(x);
  const at::Tensor input = x.contiguous(), out = at::empty_like(input);
  C10_CUDA_CHECK(add_one(input.const_data_ptr<float>(), out.mutable_data_ptr<float>(), input.numel(), place.stream()));
  return out;
}

}  // namespace
}  // namespace mhicl::cuda

MHICL_GPU_OPERATORS(m) { m.impl("cuda_self_check", mhicl::cuda::cuda_self_check); }
