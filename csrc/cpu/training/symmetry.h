// The symmetries of a task with white covariates: rotations among the covariates of an atom, which the same tasks read, and
// the sign of each label. What they leave alone is, in KQ, a multiple of the identity on each atom, and in OV the
// diagonal of the label block. At such weights the population gradient is one of them too, and averaging an estimate of it
// over the symmetries removes noise and nothing else.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "estimate.h"

namespace mhicl {

class Symmetries {
 public:
  // task.atoms (d) numbers each covariate's atom.
  explicit Symmetries(const TaskSpec& task) : task_(task), sizes_(task.dim_x, 0) {
    for (const int64_t atom : task.atoms) ++sizes_[atom];
  }

  // The average over the symmetries, in place.
  template <class T>
  void average(Weights<T>& weights) const {
    const int64_t d = task_.dim_x, dim = task_.dim();
    std::vector<double> means(d);
    for (int64_t h = 0; h < task_.heads; ++h) {
      T* kq = weights.kq.data() + h * dim * dim;
      std::fill(means.begin(), means.end(), 0.0);
      for (int64_t c = 0; c < d; ++c) means[task_.atoms[c]] += double(kq[c * dim + c]) / double(sizes_[task_.atoms[c]]);
      // The label columns stay: the query has no labels, so they multiply nothing.
      for (int64_t row = 0; row < dim; ++row) {
        for (int64_t c = 0; c < d; ++c) kq[row * dim + c] = row == c ? T(means[task_.atoms[c]]) : T(0);
      }
      T* ov = weights.ov.data() + h * task_.tasks * dim;
      for (int64_t i = 0; i < task_.tasks; ++i) {
        for (int64_t e = 0; e < dim; ++e) {
          if (e != d + i) ov[i * dim + e] = T(0);
        }
      }
    }
  }

  // Whether averaging changes no entry by more than rounding of the largest.
  template <class T>
  bool leave_alone(const Weights<T>& weights) const {
    Weights<T> averaged = weights;
    average(averaged);
    return close(weights.kq, averaged.kq) && close(weights.ov, averaged.ov);
  }

 private:
  template <class T>
  static bool close(const std::vector<T>& a, const std::vector<T>& b) {
    constexpr double rounding = sizeof(T) == 4 ? 1e-5 : 1e-12;
    double largest = 0, apart = 0;
    for (size_t at = 0; at < a.size(); ++at) {
      largest = std::fmax(largest, std::abs(double(a[at])));
      apart = std::fmax(apart, std::abs(double(a[at]) - double(b[at])));
    }
    return apart <= rounding * largest;
  }

  const TaskSpec& task_;
  std::vector<int64_t> sizes_;
};

}  // namespace mhicl
