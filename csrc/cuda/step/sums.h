// Sums over the prompts of a chunk, in a fixed order, in double from slice to slice.
#pragma once

#include "../../host_device.h"
#include "../launchers.h"

namespace mhicl::cuda {

// sums[j] (+)= Σ_n rows[n, j] of (count, width).
template <class T>
struct RowSums {
  const T* rows;
  int64_t count, width;
};
template <class T>
int64_t row_sums_workspace_bytes(const RowSums<T>& of);
template <class T>
cudaError_t sum_rows(const RowSums<T>& of, bool accumulate, void* workspace, double* sums, cudaStream_t stream);

// sums[pair, c] (+)= Σ_n v[n, i, c] v[n, j, c] of (count, vectors, size), over the pairs i ≤ j in order.
template <class T>
struct ProductSums {
  const T* vectors;
  int64_t count, vectors_each, size;

  MHICL_HOST_DEVICE int64_t pairs() const { return vectors_each * (vectors_each + 1) / 2; }
};
template <class T>
int64_t product_sums_workspace_bytes(const ProductSums<T>& of);
template <class T>
cudaError_t sum_products(const ProductSums<T>& of, bool accumulate, void* workspace, double* sums, cudaStream_t stream);

}  // namespace mhicl::cuda
