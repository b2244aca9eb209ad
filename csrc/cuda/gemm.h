// Matrix products of strided batches.
#pragma once

#include "launchers.h"

namespace mhicl::cuda {

// A batch of matrices in place: strides in elements, of any sign or zero.
template <class T>
struct Matrix {
  T* data;
  int64_t row, column, batch;
};

// C[b] = alpha · A[b] · B[b], or C[b] += alpha · A[b] · B[b]: A (rows × depth), B (depth × cols). Any size may be 0.
template <class T>
struct GemmParams {
  int64_t batch, rows, cols, depth;
  Matrix<const T> a, b;
  Matrix<T> c;
  T alpha;
  bool accumulate;
  bool tf32;  // factors rounded to TF32, on the matrix units (float only); off: IEEE arithmetic
};

template <class T>
cudaError_t gemm(const GemmParams<T>& product, cudaStream_t stream);

// Several products in one launch, none of which reads what another writes. Always IEEE.
inline constexpr int most_products = 4;
template <class T>
cudaError_t gemm_group(const GemmParams<T>* products, int count, cudaStream_t stream);

// For products whose depth is long, as the prompts are: the depth is cut into slices, by the shape alone, each added up on
// its own and then slice after slice in double. Writes alpha · A · B (rows × cols, contiguous) or adds it; batch must
// be 1, c is ignored.
// A workspace serves products of less depth too.
template <class T>
int64_t sliced_workspace_bytes(const GemmParams<T>& product);
template <class T>
cudaError_t sliced_gemm(const GemmParams<T>& product, bool accumulate, void* workspace, double* sums,
                        cudaStream_t stream);

}  // namespace mhicl::cuda
