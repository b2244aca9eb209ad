// mhicl_gemm: csrc/cuda/gemm.h on tensors of any strides.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../../csrc/cuda/gemm.h"

namespace mhicl::cuda {
namespace {

template <class T>
GemmParams<T> product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, double alpha, bool accumulate,
                      bool tf32) {
  return {.batch = c.size(0), .rows = c.size(1), .cols = c.size(2), .depth = a.size(2),
          .a = {a.const_data_ptr<T>(), a.stride(1), a.stride(2), a.stride(0)},
          .b = {b.const_data_ptr<T>(), b.stride(1), b.stride(2), b.stride(0)},
          .c = {c.mutable_data_ptr<T>(), c.stride(1), c.stride(2), c.stride(0)},
          .alpha = T(alpha), .accumulate = accumulate, .tf32 = tf32};
}

void check(cudaError_t error) { TORCH_CHECK(error == cudaSuccess, cudaGetErrorString(error)); }

// a (B, R, K), b (B, K, C) -> c (B, R, C).
void multiply(const at::Tensor& a, const at::Tensor& b, at::Tensor c, double alpha, bool accumulate, bool tf32) {
  AT_DISPATCH_FLOATING_TYPES(c.scalar_type(), "gemm", [&] {
    check(gemm(product<scalar_t>(a, b, c, alpha, accumulate, tf32), nullptr));
  });
}

void multiply_group(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b,
                    const std::vector<at::Tensor>& c) {
  AT_DISPATCH_FLOATING_TYPES(c[0].scalar_type(), "gemm_group", [&] {
    std::vector<GemmParams<scalar_t>> products;
    for (size_t i = 0; i < c.size(); ++i) products.push_back(product<scalar_t>(a[i], b[i], c[i], 1, false, false));
    check(gemm_group(products.data(), int(products.size()), nullptr));
  });
}

// a (R, K), b (K, C) -> sums (R, C), in double.
void multiply_sliced(const at::Tensor& a, const at::Tensor& b, at::Tensor sums, double alpha, bool accumulate) {
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "sliced_gemm", [&] {
    const at::Tensor unused = at::empty({1, a.size(0), b.size(1)}, a.options());
    const auto p = product<scalar_t>(a.unsqueeze(0), b.unsqueeze(0), unused, alpha, false, false);
    const at::Tensor workspace = at::empty({sliced_workspace_bytes(p)}, a.options().dtype(at::kByte));
    check(sliced_gemm(p, accumulate, workspace.mutable_data_ptr(), sums.mutable_data_ptr<double>(), nullptr));
  });
}

// What multiply_sliced keeps beside the sums of a (rows, depth) by (depth, cols), float64.
int64_t sliced_bytes(int64_t rows, int64_t cols, int64_t depth) {
  GemmParams<double> product = {};
  product.batch = 1;
  product.rows = rows;
  product.cols = cols;
  product.depth = depth;
  return sliced_workspace_bytes(product);
}

}  // namespace
}  // namespace mhicl::cuda

TORCH_LIBRARY(mhicl_gemm, m) {
  m.def("multiply(Tensor a, Tensor b, Tensor(a!) c, float alpha, bool accumulate, bool tf32) -> ()");
  m.def("multiply_group(Tensor[] a, Tensor[] b, Tensor(a!)[] c) -> ()");
  m.def("multiply_sliced(Tensor a, Tensor b, Tensor(a!) sums, float alpha, bool accumulate) -> ()");
  m.def("sliced_bytes(int rows, int cols, int depth) -> int", mhicl::cuda::sliced_bytes);
}

TORCH_LIBRARY_IMPL(mhicl_gemm, CPU, m) {
  m.impl("multiply", mhicl::cuda::multiply);
  m.impl("multiply_group", mhicl::cuda::multiply_group);
  m.impl("multiply_sliced", mhicl::cuda::multiply_sliced);
}
