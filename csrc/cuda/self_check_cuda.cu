// mhicl::cuda_self_check: x + 1 on the GPU. It shows that a CUDA build launches its kernels on the right device and
// stream, with the least that can go wrong otherwise.

#include <ATen/Functions.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>

namespace mhicl {
namespace {

constexpr int threads_per_block = 256;
constexpr std::int64_t most_blocks = 4096;  // past it each thread takes several elements

__global__ void add_one(const float* x, float* out, std::int64_t size) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += stride) {
    out[i] = x[i] + 1.0f;
  }
}

at::Tensor cuda_self_check(const at::Tensor& x) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, "x must be float32, got ", x.scalar_type());
  const at::Tensor input = x.contiguous();
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor out = at::empty_like(input);
  const std::int64_t size = input.numel();
  if (size == 0) return out;  // a launch of no blocks is an error
  const std::int64_t blocks = std::min((size + threads_per_block - 1) / threads_per_block, most_blocks);
  add_one<<<static_cast<unsigned>(blocks), threads_per_block, 0, c10::cuda::getCurrentCUDAStream()>>>(
      input.const_data_ptr<float>(), out.mutable_data_ptr<float>(), size);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace
}  // namespace mhicl

TORCH_LIBRARY_IMPL(mhicl, CUDA, m) {
  m.impl("cuda_self_check", &mhicl::cuda_self_check);
}
