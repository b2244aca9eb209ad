#include "estimate.h"

#include <algorithm>

#include "../gemm.h"
#include "layout.cuh"
#include "residual_terms.cuh"

namespace mhicl::cuda {
namespace {

constexpr int threads_per_block = 256;
constexpr int64_t most_layout_blocks = 1024;

// Blocks for the elements of the larger of two arrays.
int64_t layout_blocks(int64_t first, int64_t second) {
  const int64_t blocks = (std::max(first, second) + threads_per_block - 1) / threads_per_block;
  return std::clamp<int64_t>(blocks, 1, most_layout_blocks);
}

template <class T>
int64_t layout_blocks(const EstimateArrays<T>& e) {
  return layout_blocks(e.task.heads * e.rows * e.task.dim_x, e.task.heads * e.task.tasks * e.width);
}

// With x = A ξ, W becomes Aᵀ W A, the label rows R become R A, and OV's covariate block V becomes V A. Of the two
// products around W the first goes to `half`.
template <class T>
cudaError_t fold(const EstimateArrays<T>& e, cudaStream_t stream) {
  const int64_t d = e.task.dim_x, dim = e.task.dim, heads = e.task.heads, tasks = e.task.tasks;
  const Matrix<const T> factor = {e.task.factor, d, 1, 0}, transposed = {e.task.factor, 1, d, 0};
  GemmParams<T> products[3] = {{.batch = heads, .rows = d, .cols = d, .depth = d,
                                .a = {e.weights.kq, dim, 1, dim * dim}, .b = factor, .c = {e.half, d, 1, d * d},
                                .alpha = T(1), .accumulate = false, .tf32 = false}};
  products[1] = products[2] = products[0];
  products[1].rows = tasks;
  products[1].a.data += d * dim;
  products[1].c = {e.projections + d, 1, heads * dim, dim};
  products[2].batch = tasks;
  products[2].rows = heads;
  products[2].a = {e.weights.ov, tasks * dim, 1, dim};
  products[2].c = {e.outputs, dim, 1, heads * dim};
  const cudaError_t error = gemm_group(products, e.conditional ? 1 : 3, stream);
  if (error != cudaSuccess) return error;
  products[0].a = transposed;
  products[0].b = {e.half, d, 1, d * d};
  products[0].c = {e.projections, 1, heads * e.rows, e.rows};
  return gemm(products[0], stream);
}

// The gradients' way back: G becomes A G Aᵀ, the label rows' R becomes R Aᵀ, the covariate block's V becomes V Aᵀ.
template <class T>
cudaError_t unfold(const EstimateArrays<T>& e, cudaStream_t stream) {
  const int64_t d = e.task.dim_x, dim = e.task.dim, heads = e.task.heads, tasks = e.task.tasks;
  const Matrix<const T> factor = {e.task.factor, d, 1, 0}, transposed = {e.task.factor, 1, d, 0};
  GemmParams<T> products[3] = {{.batch = heads, .rows = d, .cols = d, .depth = d,
                                .a = {e.whitened.kq, d, 1, e.rows * d}, .b = transposed, .c = {e.half, d, 1, d * d},
                                .alpha = T(1), .accumulate = false, .tf32 = false}};
  products[1] = products[2] = products[0];
  products[1].rows = tasks;
  products[1].a.data += d * d;
  products[1].c = {e.gradient.kq + d * dim, dim, 1, dim * dim};
  products[2].batch = 1;
  products[2].rows = heads * tasks;
  products[2].a = {e.whitened.ov, d, 1, 0};
  products[2].c = {e.gradient.ov, dim, 1, 0};
  const cudaError_t error = gemm_group(products, e.conditional ? 1 : 3, stream);
  if (error != cudaSuccess) return error;
  products[0].a = factor;
  products[0].b = {e.half, d, 1, d * d};
  products[0].c = {e.gradient.kq, dim, 1, dim * dim};
  return gemm(products[0], stream);
}

// (h, m) of weigh_residuals, a block each; none where nothing is integrated out.
template <class T>
int64_t weighing_blocks(const EstimateArrays<T>& e) {
  return e.conditional ? e.task.heads * (1 + e.task.heads) : 0;
}

}  // namespace

// The first `weighing` blocks weigh residuals, the others lay out.
template <class T>
__global__ void __launch_bounds__(threads_per_block) prepare_kernel(EstimateArrays<T> e, int64_t weighing) {
  const int64_t block = blockIdx.x, vectors = 1 + e.task.heads;
  if (block < weighing) {
    weigh_residuals(e, block / vectors, block % vectors, reinterpret_cast<double*>(shared_memory()));
  } else {
    lay_out_weights(e, {block - weighing, int64_t{gridDim.x} - weighing});
  }
}

// The first `differentiating` blocks differentiate residuals, a task each; the others lay out.
template <class T>
__global__ void __launch_bounds__(threads_per_block) finish_kernel(EstimateArrays<T> e, int64_t differentiating) {
  const int64_t block = blockIdx.x;
  if (block < differentiating) {
    differentiate_residuals(e, block, reinterpret_cast<double*>(shared_memory()));
  } else {
    lay_out_gradient(e, {block - differentiating, int64_t{gridDim.x} - differentiating});
  }
}

template <class T>
cudaError_t prepare_estimate(const EstimateArrays<T>& e, cudaStream_t stream) {
  const int64_t weighing = weighing_blocks(e), shared = weighing ? e.task.tasks * int64_t(sizeof(double)) : 0;
  const cudaError_t error = launch(prepare_kernel<T>, dim3(unsigned(weighing + layout_blocks(e))),
                                   dim3(threads_per_block), shared, stream, e, weighing);
  return error == cudaSuccess && e.task.factor ? fold(e, stream) : error;
}

template <class T>
cudaError_t finish_estimate(const EstimateArrays<T>& e, cudaStream_t stream) {
  const int64_t differentiating = e.conditional ? e.task.tasks : 0;
  const int64_t shared = differentiating ? reduce_room(threads_per_block, 1) * int64_t(sizeof(double)) : 0;
  const cudaError_t error = launch(finish_kernel<T>, dim3(unsigned(differentiating + layout_blocks(e))),
                                   dim3(threads_per_block), shared, stream, e, differentiating);
  return error == cudaSuccess && e.task.factor ? unfold(e, stream) : error;
}

#define MHICL_ESTIMATE(T)                                                        \
  template cudaError_t prepare_estimate<T>(const EstimateArrays<T>&, cudaStream_t); \
  template cudaError_t finish_estimate<T>(const EstimateArrays<T>&, cudaStream_t);
MHICL_ESTIMATE(float)
MHICL_ESTIMATE(double)
#undef MHICL_ESTIMATE

}  // namespace mhicl::cuda
