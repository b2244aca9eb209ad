// From combined weights to the arrays that the fused step reads, and from its sums to gradients.
#pragma once

#include "../device.h"
#include "estimate.h"

namespace mhicl::cuda {

// Some of a kernel's blocks.
struct BlockRange {
  int64_t index, count;
};

// body(i) for this thread's share of 0 … size − 1.
template <class Body>
__device__ __forceinline__ void for_each_element(int64_t size, BlockRange blocks, const Body& body) {
  for (int64_t i = blocks.index * blockDim.x + threadIdx.x; i < size; i += blocks.count * blockDim.x) body(i);
}

// KQ (H, D, D) -> (d, H, rows) and OV (H, I, D) -> (I, H, width); what A multiplies is left to products with it.
template <class T>
__device__ __forceinline__ void lay_out_weights(const EstimateArrays<T>& e, BlockRange blocks) {
  const int64_t d = e.task.dim_x, dim = e.task.dim, heads = e.task.heads;
  if (!e.task.factor) {
    for_each_element(d * heads * e.rows, blocks, [&](int64_t i) {
      const int64_t row = i % e.rows, h = i / e.rows % heads, c = i / e.rows / heads;
      e.projections[i] = e.weights.kq[(h * dim + row) * dim + c];
    });
  }
  for_each_element(e.task.tasks * heads * e.width, blocks, [&](int64_t i) {
    const int64_t column = i % e.width, h = i / e.width % heads, task = i / e.width / heads;
    if (e.folds_outputs && column < d) return;
    e.outputs[i] = e.weights.ov[(h * e.task.tasks + task) * dim + column];
  });
}

// The way back, of sums over the prompts to means; what A multiplies goes to e.whitened.
template <class T>
__device__ __forceinline__ void lay_out_gradient(const EstimateArrays<T>& e, BlockRange blocks) {
  const int64_t d = e.task.dim_x, dim = e.task.dim, heads = e.task.heads, tasks = e.task.tasks;
  for_each_element(heads * e.rows * d, blocks, [&](int64_t i) {
    const int64_t c = i % d, row = i / d % e.rows, h = i / d / e.rows;
    T* to = e.task.factor ? e.whitened.kq + i : e.gradient.kq + (h * dim + row) * dim + c;
    *to = T(e.share * e.sums[(c * heads + h) * e.rows + row]);
  });
  for_each_element(heads * tasks * e.width, blocks, [&](int64_t i) {
    const int64_t column = i % e.width, task = i / e.width % tasks, h = i / e.width / tasks, row = h * tasks + task;
    T* to = e.folds_outputs && column < d ? e.whitened.ov + row * d + column : e.gradient.ov + row * dim + column;
    *to = T(e.share * e.output_sums[(task * heads + h) * e.width + column]);
  });
}

}  // namespace mhicl::cuda
