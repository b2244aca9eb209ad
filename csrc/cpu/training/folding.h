// Weights of whitened covariates: with x = A ξ, KQ's covariate block W becomes Aᵀ W A, its label rows R become R A, and OV's
// covariate block V becomes V A; gradients go back the same way. Without A only the layout changes.
#pragma once

#include <algorithm>
#include <vector>

#include "../kernels.h"
#include "estimate.h"

namespace mhicl {

template <class T>
class Folding {
 public:
  explicit Folding(const TaskSpec& task)
      : d_(task.dim_x), dim_(task.dim()), heads_(task.heads), tasks_(task.tasks),
        factor_(task.factor.begin(), task.factor.end()), transposed_(factor_.size()) {
    for (size_t at = 0; at < factor_.size(); ++at) transposed_[at % d_ * d_ + at / d_] = factor_[at];
  }

  // A and Aᵀ (d, d), or null for the identity.
  const T* factor() const { return factor_.empty() ? nullptr : factor_.data(); }
  const T* transposed() const { return transposed_.empty() ? nullptr : transposed_.data(); }

  // The first `rows` rows of every KQ_h, D or d of them: (H, D, D) -> (d, H, rows), folded.
  void projections(const std::vector<T>& kq, int64_t rows, std::vector<T>& out) const {
    std::vector<T> folded(factor() ? rows * d_ : 0);
    for (int64_t h = 0; h < heads_; ++h) {
      const T* block = kq.data() + h * dim_ * dim_;
      int64_t stride = dim_;
      if (factor()) {
        fold(block, rows, folded.data());
        block = folded.data();
        stride = d_;
      }
      for (int64_t e = 0; e < rows; ++e) {
        for (int64_t c = 0; c < d_; ++c) out[(c * heads_ + h) * rows + e] = block[e * stride + c];
      }
    }
  }

  // The gradient in the above, (d, H, rows) times `factor`, -> that in KQ (H, D, D), of which the rest is left alone.
  void projections_backward(const double* sums, double factor_on_sums, int64_t rows, std::vector<T>& grad_kq) const {
    std::vector<T> whitened(rows * d_);
    for (int64_t h = 0; h < heads_; ++h) {
      for (int64_t e = 0; e < rows; ++e) {
        for (int64_t c = 0; c < d_; ++c) {
          whitened[e * d_ + c] = T(factor_on_sums * sums[(c * heads_ + h) * rows + e]);
        }
      }
      if (factor()) unfold(whitened, rows);
      for (int64_t e = 0; e < rows; ++e) {
        std::copy_n(whitened.data() + e * d_, d_, grad_kq.data() + (h * dim_ + e) * dim_);
      }
    }
  }

  // OV (H, I, D) -> (I, H, D), its covariate block folded.
  void outputs(const std::vector<T>& ov, std::vector<T>& out) const {
    for (int64_t h = 0; h < heads_; ++h) {
      for (int64_t i = 0; i < tasks_; ++i) {
        const T* from = ov.data() + (h * tasks_ + i) * dim_;
        T* to = out.data() + (i * heads_ + h) * dim_;
        std::copy_n(from, dim_, to);
        if (factor()) multiply(1, from, d_, factor(), to);
      }
    }
  }

  // The gradient in the above times `factor` -> that in OV (H, I, D).
  void outputs_backward(const double* sums, double factor_on_sums, std::vector<T>& grad_ov) const {
    std::vector<T> row(dim_);
    for (int64_t h = 0; h < heads_; ++h) {
      for (int64_t i = 0; i < tasks_; ++i) {
        const double* from = sums + (i * heads_ + h) * dim_;
        T* to = grad_ov.data() + (h * tasks_ + i) * dim_;
        for (int64_t e = 0; e < dim_; ++e) to[e] = row[e] = T(factor_on_sums * from[e]);
        if (factor()) multiply(1, row.data(), d_, transposed(), to);
      }
    }
  }

 private:
  // out (rows, d) = a (rows, d) · b (d, d).
  void multiply(int64_t rows, const T* a, int64_t a_stride, const T* b, T* out) const {
    kernels().matrix<T>().gemm({.rows = rows, .cols = d_, .depth = d_, .a = a, .a_stride = a_stride,
                                   .unit_rows = false, .b = b, .b_stride = d_, .c = out, .c_stride = d_,
                                   .accumulate = false});
  }

  // [W; R] -> [Aᵀ W A; R A].
  void fold(const T* block, int64_t rows, T* out) const {
    std::vector<T> half(rows * d_);
    multiply(rows, block, dim_, factor(), half.data());
    multiply(d_, transposed(), d_, half.data(), out);
    std::copy(half.begin() + d_ * d_, half.end(), out + d_ * d_);
  }

  // [G; R] -> [A G Aᵀ; R Aᵀ], in place.
  void unfold(std::vector<T>& gradient, int64_t rows) const {
    std::vector<T> half(rows * d_);
    multiply(rows, gradient.data(), d_, transposed(), half.data());
    multiply(d_, factor(), d_, half.data(), gradient.data());
    std::copy(half.begin() + d_ * d_, half.end(), gradient.begin() + d_ * d_);
  }

  const int64_t d_, dim_, heads_, tasks_;
  const std::vector<T> factor_;
  std::vector<T> transposed_;
};

}  // namespace mhicl
