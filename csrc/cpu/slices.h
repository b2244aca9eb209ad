// Fixed shares of the prompts. Sums over prompts are taken slice by slice and the slices' sums in order, so that the
// result has the same bits for every number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <ATen/ATen.h>

#include "kernels.h"
#include "parallel.h"

namespace mhicl {

struct Slices {
  int64_t n, count;

  // As many as give threads work.
  explicit Slices(int64_t n_prompts) : n(n_prompts), count(std::clamp<int64_t>(n_prompts, 1, 64)) {}

  // Few enough, too, that partial sums of `partial_elements` each stay small beside the data.
  Slices(int64_t n_prompts, int64_t data_elements, int64_t partial_elements) : Slices(n_prompts) {
    const int64_t affordable = std::max<int64_t>(8, data_elements / (4 * std::max<int64_t>(partial_elements, 1)));
    count = std::max<int64_t>(1, std::min({(n + 3) / 4, affordable, count}));
  }
  int64_t begin(int64_t slice) const { return n * slice / count; }
  int64_t end(int64_t slice) const { return n * (slice + 1) / count; }
};

// body(slice, begin, end) on all threads.
template <class Body>
void for_slices(const Slices& slices, const Body& body) {
  parallel_for(slices.count, [&](int64_t slice) { body(slice, slices.begin(slice), slices.end(slice)); });
}

// Room for one partial sum a slice. Every slice overwrites its own; without prompts nobody does, and the sum is zero.
inline at::Tensor partial_sums(const Slices& slices, std::vector<int64_t> shape, const at::TensorOptions& options) {
  shape.insert(shape.begin(), slices.count);
  return slices.n == 0 ? at::zeros(shape, options) : at::empty(shape, options);
}

// Σ over the first dimension of a contiguous (slices, …), in order.
template <class T>
at::Tensor sum_slices(const at::Tensor& partial) {
  const at::Tensor ones = at::ones({partial.size(0)}, partial.options());
  at::Tensor total = at::empty(partial.sizes().slice(1), partial.options());
  const int64_t size = total.numel(), piece = 4096;
  parallel_for((size + piece - 1) / piece, [&](int64_t i) {
    kernels().matrix<T>().gemm({.rows = 1, .cols = std::min(piece, size - i * piece), .depth = partial.size(0),
                                   .a = ones.const_data_ptr<T>(), .a_stride = 1, .unit_rows = true,
                                   .b = partial.const_data_ptr<T>() + i * piece, .b_stride = size,
                                   .c = total.mutable_data_ptr<T>() + i * piece, .c_stride = size,
                                   .accumulate = false});
  });
  return total;
}

}  // namespace mhicl
