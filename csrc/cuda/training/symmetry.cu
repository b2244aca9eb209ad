#include "symmetry.h"

#include "reduce.cuh"

namespace mhicl::cuda {
namespace {

constexpr int threads_per_block = 256;

// The mean of a head's diagonal over each atom, by a block.
template <class T>
__device__ __forceinline__ void mean_diagonal(const DeviceTask<T>& task, const T* kq, double* means) {
  for (int64_t atom = threadIdx.x; atom < task.dim_x; atom += blockDim.x) {
    int64_t size = 0;
    for (int64_t c = 0; c < task.dim_x; ++c) size += task.atoms[c] == atom;
    double mean = 0;
    for (int64_t c = 0; c < task.dim_x; ++c) {
      if (task.atoms[c] == atom) mean += double(kq[c * task.dim + c]) / double(size);
    }
    means[atom] = mean;
  }
  __syncthreads();
}

// A head's KQ averaged, entry by entry: entry(place, average). The label columns stay: the query has no labels, so they
// multiply nothing.
template <class T, class Entry>
__device__ __forceinline__ void for_each_of_kq(const DeviceTask<T>& task, const T* kq, const double* means,
                                               const Entry& entry) {
  for (int64_t at = threadIdx.x; at < task.dim * task.dim; at += blockDim.x) {
    const int64_t row = at / task.dim, c = at % task.dim;
    entry(at, c >= task.dim_x ? kq[at] : row == c ? T(means[task.atoms[c]]) : T(0));
  }
}

template <class T, class Entry>
__device__ __forceinline__ void for_each_of_ov(const DeviceTask<T>& task, const T* ov, const Entry& entry) {
  for (int64_t at = threadIdx.x; at < task.tasks * task.dim; at += blockDim.x) {
    entry(at, at % task.dim == task.dim_x + at / task.dim ? ov[at] : T(0));
  }
}

}  // namespace

// A block for each head.
template <class T>
__global__ void __launch_bounds__(threads_per_block)
    average_kernel(DeviceTask<T> task, DeviceWeights<const T> weights, DeviceWeights<T> gradient,
                   HeadAsymmetry* asymmetry) {
  double* means = reinterpret_cast<double*>(shared_memory());
  const int64_t h = blockIdx.x;
  const T *kq = weights.kq + h * task.dim * task.dim, *ov = weights.ov + h * task.tasks * task.dim;
  T *grad_kq = gradient.kq + h * task.dim * task.dim, *grad_ov = gradient.ov + h * task.tasks * task.dim;
  double found[4] = {0, 0, 0, 0};
  const auto compare = [&](double entry, double average, int at) {
    found[at] = std::fmax(found[at], std::fabs(entry - average));
    found[at + 1] = std::fmax(found[at + 1], std::fabs(entry));
  };
  mean_diagonal(task, kq, means);
  for_each_of_kq(task, kq, means, [&](int64_t at, T average) { compare(kq[at], average, 0); });
  for_each_of_ov(task, ov, [&](int64_t at, T average) { compare(ov[at], average, 2); });
  block_reduce<0>(found, means + task.dim_x);
  if (threadIdx.x == 0) asymmetry[h] = {found[0], found[1], found[2], found[3]};
  mean_diagonal<T>(task, grad_kq, means);
  for_each_of_kq<T>(task, grad_kq, means, [&](int64_t at, T average) { grad_kq[at] = average; });
  for_each_of_ov<T>(task, grad_ov, [&](int64_t at, T average) { grad_ov[at] = average; });
}

template <class T>
cudaError_t average_over_symmetries(const DeviceTask<T>& task, const DeviceWeights<const T>& weights,
                                    const DeviceWeights<T>& gradient, HeadAsymmetry* asymmetry, cudaStream_t stream) {
  const int64_t shared = (task.dim_x + reduce_room(threads_per_block, 4)) * int64_t(sizeof(double));
  return launch(average_kernel<T>, dim3(unsigned(task.heads)), dim3(threads_per_block), shared, stream, task, weights,
                gradient, asymmetry);
}

template cudaError_t average_over_symmetries<float>(const DeviceTask<float>&, const DeviceWeights<const float>&,
                                                    const DeviceWeights<float>&, HeadAsymmetry*, cudaStream_t);
template cudaError_t average_over_symmetries<double>(const DeviceTask<double>&, const DeviceWeights<const double>&,
                                                     const DeviceWeights<double>&, HeadAsymmetry*, cudaStream_t);

}  // namespace mhicl::cuda
