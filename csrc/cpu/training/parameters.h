// From trained parameters to combined weights, and gradients back.
#pragma once

#include <vector>

#include "../kernels.h"
#include "estimate.h"
#include "training.h"

namespace mhicl {

template <class T>
class Parameters {
 public:
  Parameters(const TaskSpec& task, const TrainingSpec& spec, const TrainedArrays<T>& arrays)
      : task_(task), spec_(spec), arrays_(arrays), transposed_(spec.width * task.dim()) {
    for (const int64_t size : arrays.sizes) gradients_.emplace_back(size);
  }

  const std::vector<std::vector<T>>& gradients() const { return gradients_; }

  // KQ_h = scale · W_K,hᵀ W_Q,h and OV_h = W_O,h W_V,h, or what is trained itself.
  void combine(Weights<T>& weights) const {
    if (spec_.parameterisation == Parameterisation::combined) {
      std::copy_n(arrays_.parameters[0], arrays_.sizes[0], weights.kq.data());
      std::copy_n(arrays_.parameters[1], arrays_.sizes[1], weights.ov.data());
      return;
    }
    for (int64_t h = 0; h < task_.heads; ++h) {
      const Head head = head_of(h);
      T* kq = weights.kq.data() + h * dim() * dim();
      multiply(dim(), dim(), width(), head.w_k, dim(), true, head.w_q, kq);
      for (int64_t at = 0; at < dim() * dim(); ++at) kq[at] *= T(spec_.scale);
      multiply(task_.tasks, dim(), width(), head.w_o, width(), false, head.w_v,
               weights.ov.data() + h * task_.tasks * dim());
    }
  }

  // ∂W_Q = W_K G, ∂W_K = W_Q Gᵀ with G = scale · ∂KQ; ∂W_V = W_Oᵀ ∂OV, ∂W_O = ∂OV W_Vᵀ. Overwrites `gradient`.
  void pull_back(Weights<T>& gradient) {
    if (spec_.parameterisation == Parameterisation::combined) {
      gradients_[0].swap(gradient.kq);
      gradients_[1].swap(gradient.ov);
      return;
    }
    for (T& entry : gradient.kq) entry *= T(spec_.scale);
    std::vector<T> gradient_transposed(dim() * dim());
    for (int64_t h = 0; h < task_.heads; ++h) {
      const Head head = head_of(h);
      const T* kq = gradient.kq.data() + h * dim() * dim();
      const T* ov = gradient.ov.data() + h * task_.tasks * dim();
      transpose(kq, dim(), dim(), gradient_transposed.data());
      transpose(head.w_v, width(), dim(), transposed_.data());
      const int64_t square = h * width() * dim();
      multiply(width(), dim(), dim(), head.w_k, dim(), false, kq, gradients_[0].data() + square);
      multiply(width(), dim(), dim(), head.w_q, dim(), false, gradient_transposed.data(), gradients_[1].data() + square);
      multiply(width(), dim(), task_.tasks, head.w_o, width(), true, ov, gradients_[2].data() + square);
      multiply(task_.tasks, width(), dim(), ov, dim(), false, transposed_.data(),
               gradients_[3].data() + h * task_.tasks * width());
    }
  }

 private:
  struct Head {
    const T *w_q, *w_k, *w_v, *w_o;
  };

  int64_t dim() const { return task_.dim(); }
  int64_t width() const { return spec_.width; }

  Head head_of(int64_t h) const {
    const int64_t square = h * width() * dim();
    return {arrays_.parameters[0] + square, arrays_.parameters[1] + square, arrays_.parameters[2] + square,
            arrays_.parameters[3] + h * task_.tasks * width()};
  }

  // out (rows, cols) = A (rows, depth) · b (depth, cols); unit_rows: `a` holds Aᵀ.
  static void multiply(int64_t rows, int64_t cols, int64_t depth, const T* a, int64_t a_stride, bool unit_rows, const T* b,
                       T* out) {
    kernels().matrix<T>().gemm({.rows = rows, .cols = cols, .depth = depth, .a = a, .a_stride = a_stride,
                                   .unit_rows = unit_rows, .b = b, .b_stride = cols, .c = out, .c_stride = cols,
                                   .accumulate = false});
  }

  static void transpose(const T* in, int64_t rows, int64_t cols, T* out) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) out[c * rows + r] = in[r * cols + c];
    }
  }

  const TaskSpec& task_;
  const TrainingSpec& spec_;
  const TrainedArrays<T>& arrays_;
  std::vector<std::vector<T>> gradients_;
  std::vector<T> transposed_;
};

}  // namespace mhicl
