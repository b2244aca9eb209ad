// Update rules and sums on flat arrays: plain structs and the table of their kernels.
#pragma once

#include <cstdint>

namespace mhicl {

template <class T>
struct UpdateParams {
  int64_t count;
  T* parameter;
  const T* gradient;
  T *first, *second;  // the rule's memory: velocity, or the gradient's running moments
  T step;
  T momentum;
  double beta1, beta2;
  T root;     // √(1 − β₂ᵗ)
  T epsilon;
  T kept;     // 1 − learning rate · weight decay
};

template <class T>
struct UpdateKernels {
  void (*descend)(const UpdateParams<T>&);
  void (*descend_with_momentum)(const UpdateParams<T>&);
  void (*adapt_moments)(const UpdateParams<T>&);
  double (*sum_of_squares)(const T* g, int64_t count);
  // Σ over rows up their tree: the largest power of two below their number, then the others, each summed likewise.
  void (*add_rows)(const T* rows, int64_t slices, int64_t size, int64_t begin, int64_t end, double* sums);
  T (*largest_magnitude)(const T* g, int64_t count);
};

}  // namespace mhicl
