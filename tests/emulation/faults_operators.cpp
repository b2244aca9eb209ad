// torch.ops.mhicl_faults: the kernels of faults.cu, and what the emulation's own tests need beside them.
#include <vector>

#include "cuda/binding.h"
#include "faults.h"

namespace mhicl::cuda::faults {
namespace {

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

at::Tensor run_op(const std::string& name, bool planted, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.numel() == kSize && x.is_contiguous(), "x must have ", kSize, " elements, got ", x.sizes());
  const Place place(x);
  at::Tensor out = at::empty_like(x);
  C10_CUDA_CHECK(run(name, planted, x.const_data_ptr<float>(), out.mutable_data_ptr<float>(), place.stream()));
  return out;
}

dim3 triple(at::IntArrayRef sizes) { return dim3(unsigned(sizes[0]), unsigned(sizes[1]), unsigned(sizes[2])); }

void launch_op(at::IntArrayRef grid, at::IntArrayRef block, int64_t shared_bytes, int64_t granted) {
  C10_CUDA_CHECK(launch_shape(triple(grid), triple(block), shared_bytes, int(granted), stream()));
}

at::Tensor order_op(int64_t blocks) {
  at::Tensor out = at::empty({blocks * kSize});
  C10_CUDA_CHECK(order(out.mutable_data_ptr<float>(), int(blocks), stream()));
  return out;
}

at::Tensor graph_op(const at::Tensor& x, int64_t times, bool planted) {
  at::Tensor out = at::empty_like(x);
  C10_CUDA_CHECK(
      accumulate_by_graph(x.const_data_ptr<float>(), out.mutable_data_ptr<float>(), int(times), planted));
  return out;
}

at::Tensor widen_op(const at::Tensor& x) {
  at::Tensor out = at::empty_like(x, at::kFloat);
  const auto* bits = static_cast<const uint16_t*>(x.const_data_ptr());
  C10_CUDA_CHECK(widen_halves(bits, out.mutable_data_ptr<float>(), x.numel(), stream()));
  return out;
}

at::Tensor narrow_op(const at::Tensor& x) {
  at::Tensor out = at::empty_like(x, at::kHalf);
  auto* bits = static_cast<uint16_t*>(out.mutable_data_ptr());
  C10_CUDA_CHECK(narrow_to_halves(x.const_data_ptr<float>(), bits, x.numel(), stream()));
  return out;
}

at::Tensor tf32_op(const at::Tensor& x) {
  at::Tensor out = at::empty_like(x);
  C10_CUDA_CHECK(round_to_tf32(x.const_data_ptr<float>(), out.mutable_data_ptr<float>(), x.numel(), stream()));
  return out;
}

at::Tensor multiply_op(const at::Tensor& a, const at::Tensor& b, const at::Tensor& d) {
  at::Tensor out = d.clone();
  C10_CUDA_CHECK(multiply_add(a.const_data_ptr<float>(), b.const_data_ptr<float>(), out.mutable_data_ptr<float>(),
                              stream()));
  return out;
}

at::Tensor exchange_op(const at::Tensor& x) {
  at::Tensor out = at::empty({6, kSize / 2});
  C10_CUDA_CHECK(exchange(x.const_data_ptr<float>(), out.mutable_data_ptr<float>(), stream()));
  return out;
}

}  // namespace

TORCH_LIBRARY(mhicl_faults, m) {
  m.def("run(str name, bool planted, Tensor x) -> Tensor", run_op);
  m.def("launch(int[3] grid, int[3] block, int shared_bytes, int granted) -> ()", launch_op);
  m.def("order(int blocks) -> Tensor", order_op);
  m.def("graph(Tensor x, int times, bool planted) -> Tensor", graph_op);
  m.def("widen(Tensor x) -> Tensor", widen_op);
  m.def("narrow(Tensor x) -> Tensor", narrow_op);
  m.def("tf32(Tensor x) -> Tensor", tf32_op);
  m.def("multiply_add(Tensor a, Tensor b, Tensor d) -> Tensor", multiply_op);
  m.def("exchange(Tensor x) -> Tensor", exchange_op);
}

}  // namespace mhicl::cuda::faults
