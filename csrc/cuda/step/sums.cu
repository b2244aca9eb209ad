#include "sums.h"

#include <algorithm>

#include "../device.h"
#include "../ordered_sum.cuh"

namespace mhicl::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMostSlices = 256, kRowsOfSlice = 32;
constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;

int64_t slices_of(int64_t count) { return std::clamp<int64_t>((count + kRowsOfSlice - 1) / kRowsOfSlice, 1, kMostSlices); }

int64_t blocks_for(int64_t size) { return std::max<int64_t>(1, (size + kThreads - 1) / kThreads); }

}  // namespace

// Element `at` of block (slice, place): the columns of a slice's rows are shared out over blocks and threads.
struct SlicePlace {
  int64_t slice, at, begin, end;

  __device__ __forceinline__ SlicePlace(int64_t count, int64_t slices, int64_t blocks_a_slice)
      : slice(blockIdx.x / blocks_a_slice), at(blockIdx.x % blocks_a_slice * blockDim.x + threadIdx.x),
        begin(count * slice / slices), end(count * (slice + 1) / slices) {}
};

template <class T>
__global__ void sum_rows_kernel(RowSums<T> of, int64_t slices, int64_t blocks_a_slice, T* partial) {
  const SlicePlace place(of.count, slices, blocks_a_slice);
  if (place.at >= of.width) return;
  partial[place.slice * of.width + place.at] =
      sum_in_order(T(0), place.begin, place.end, [&](int64_t n) { return of.rows[n * of.width + place.at]; });
}

template <class T>
__global__ void sum_products_kernel(ProductSums<T> of, int64_t slices, int64_t blocks_a_slice, T* partial) {
  const SlicePlace place(of.count, slices, blocks_a_slice);
  const int64_t width = of.pairs() * of.size;
  if (place.at >= width) return;
  int64_t i = 0, pair = place.at / of.size;
  for (; pair >= of.vectors_each - i; ++i) pair -= of.vectors_each - i;
  const int64_t row = of.vectors_each * of.size, c = place.at % of.size;
  const T *one = of.vectors + i * of.size + c, *other = of.vectors + (i + pair) * of.size + c;
  T sum = 0;
  for (int64_t n = place.begin; n < place.end; ++n) sum = std::fma(one[n * row], other[n * row], sum);
  partial[place.slice * width + place.at] = sum;
}

template <class T>
__global__ void add_partial_sums_kernel(const T* partial, int64_t slices, int64_t width, bool accumulate, double* sums) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= width) return;
  sums[at] = sum_in_order(accumulate ? sums[at] : 0.0, 0, slices,
                          [&](int64_t slice) { return double(partial[slice * width + at]); });
}

namespace {

template <class T, class Of>
cudaError_t sum(void (*kernel)(Of, int64_t, int64_t, T*), const Of& of, int64_t width, bool accumulate, void* workspace,
                double* sums, cudaStream_t stream) {
  if (width == 0) return cudaSuccess;
  const int64_t slices = slices_of(of.count), blocks = blocks_for(width);
  if (slices * blocks > kMostBlocks) return cudaErrorInvalidValue;
  T* const partial = static_cast<T*>(workspace);
  const cudaError_t error =
      launch(kernel, dim3(unsigned(slices * blocks)), dim3(kThreads), 0, stream, of, slices, blocks, partial);
  if (error != cudaSuccess) return error;
  return launch(add_partial_sums_kernel<T>, dim3(unsigned(blocks)), dim3(kThreads), 0, stream,
                static_cast<const T*>(partial), slices, width, accumulate, sums);
}

}  // namespace

template <class T>
int64_t row_sums_workspace_bytes(const RowSums<T>& of) {
  return slices_of(of.count) * of.width * int64_t(sizeof(T));
}

template <class T>
int64_t product_sums_workspace_bytes(const ProductSums<T>& of) {
  return slices_of(of.count) * of.pairs() * of.size * int64_t(sizeof(T));
}

template <class T>
cudaError_t sum_rows(const RowSums<T>& of, bool accumulate, void* workspace, double* sums, cudaStream_t stream) {
  return sum(sum_rows_kernel<T>, of, of.width, accumulate, workspace, sums, stream);
}

template <class T>
cudaError_t sum_products(const ProductSums<T>& of, bool accumulate, void* workspace, double* sums, cudaStream_t stream) {
  return sum(sum_products_kernel<T>, of, of.pairs() * of.size, accumulate, workspace, sums, stream);
}

template int64_t row_sums_workspace_bytes(const RowSums<float>&);
template int64_t row_sums_workspace_bytes(const RowSums<double>&);
template int64_t product_sums_workspace_bytes(const ProductSums<float>&);
template int64_t product_sums_workspace_bytes(const ProductSums<double>&);
template cudaError_t sum_rows(const RowSums<float>&, bool, void*, double*, cudaStream_t);
template cudaError_t sum_rows(const RowSums<double>&, bool, void*, double*, cudaStream_t);
template cudaError_t sum_products(const ProductSums<float>&, bool, void*, double*, cudaStream_t);
template cudaError_t sum_products(const ProductSums<double>&, bool, void*, double*, cudaStream_t);

}  // namespace mhicl::cuda
