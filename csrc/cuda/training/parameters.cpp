#include "parameters.h"

#include "../gemm.h"

namespace mhicl::cuda {
namespace {

// A batch of contiguous matrices with that many columns, one a head.
template <class T>
Matrix<T> heads_of(T* data, int64_t rows, int64_t cols) {
  return {data, cols, 1, rows * cols};
}

template <class T>
Matrix<const T> factor(const Matrix<T>& m) {
  return {m.data, m.row, m.column, m.batch};
}

template <class T>
Matrix<const T> transposed(const Matrix<T>& m) {
  return {m.data, m.column, m.row, m.batch};
}

// The trained arrays or their gradients, as matrices.
template <class T>
struct HeadMatrices {
  Matrix<T> w_q, w_k, w_v, w_o;

  HeadMatrices(const Factors<T>& f, T* const* arrays)
      : w_q(heads_of(arrays[0], f.width, f.dim)), w_k(heads_of(arrays[1], f.width, f.dim)),
        w_v(heads_of(arrays[2], f.width, f.dim)), w_o(heads_of(arrays[3], f.tasks, f.width)) {}
};

}  // namespace

template <class T>
cudaError_t combine(const Factors<T>& f, const DeviceWeights<T>& weights, cudaStream_t stream) {
  const HeadMatrices<T> w(f, f.trained.parameters);
  const GemmParams<T> products[] = {
      {f.heads, f.dim, f.dim, f.width, transposed(w.w_k), factor(w.w_q), heads_of(weights.kq, f.dim, f.dim), f.scale,
       false, false},
      {f.heads, f.tasks, f.dim, f.width, factor(w.w_o), factor(w.w_v), heads_of(weights.ov, f.tasks, f.dim), T(1), false,
       false}};
  return gemm_group(products, 2, stream);
}

template <class T>
cudaError_t pull_back(const Factors<T>& f, const DeviceWeights<T>& gradient, cudaStream_t stream) {
  const HeadMatrices<T> w(f, f.trained.parameters), grad(f, f.trained.gradients);
  const Matrix<T> kq = heads_of(gradient.kq, f.dim, f.dim), ov = heads_of(gradient.ov, f.tasks, f.dim);
  const GemmParams<T> products[] = {
      {f.heads, f.width, f.dim, f.dim, factor(w.w_k), factor(kq), grad.w_q, f.scale, false, false},
      {f.heads, f.width, f.dim, f.dim, factor(w.w_q), transposed(kq), grad.w_k, f.scale, false, false},
      {f.heads, f.width, f.dim, f.tasks, transposed(w.w_o), factor(ov), grad.w_v, T(1), false, false},
      {f.heads, f.tasks, f.width, f.dim, factor(ov), transposed(w.w_v), grad.w_o, T(1), false, false}};
  return gemm_group(products, 4, stream);
}

#define MHICL_PARAMETERS(T)                                                                      \
  template cudaError_t combine<T>(const Factors<T>&, const DeviceWeights<T>&, cudaStream_t); \
  template cudaError_t pull_back<T>(const Factors<T>&, const DeviceWeights<T>&, cudaStream_t);
MHICL_PARAMETERS(float)
MHICL_PARAMETERS(double)
#undef MHICL_PARAMETERS

}  // namespace mhicl::cuda
