// The residuals of prompts whose coefficients and label noise are integrated out, between weights and kernels. With U_h OV's
// label block and R_ij = (δ_ij, −U_1[i,j], …, −U_H[i,j]), the loss of vectors v = (x_q, a_1, …, a_H) is
//   Σ_ij λ_j Σ_mn R_ij[m] R_ij[n] Gram_j[m, n] + σ² Σ_ij Σ_hg U_h[i,j] U_g[i,j] K_hg + ‖Σ_h V_h a_h‖² (+ σ² I),
// Gram_j[m, n] = Σ_{c in S_j} v_m[c] v_n[c]: linear in sums over prompts.
#pragma once

#include <algorithm>
#include <vector>

#include "../step/step.h"
#include "estimates.h"
#include "folding.h"

namespace mhicl {

template <class T>
class ResidualTerms {
 public:
  explicit ResidualTerms(const TaskSpec& task)
      : task_(task), folding_(task), projections_(task.dim_x * task.heads * task.dim_x),
        residual_weights_(task.heads * (1 + task.heads) * task.dim_x), overlap_weights_(task.heads * task.heads),
        covariate_outputs_(task.tasks * task.heads * task.dim_x) {
    params_ = {.prompts = step_prompts<T>(task),
               .projections = projections_.data(),
               .residual_weights = residual_weights_.data(),
               .overlap_weights = task.noise_std > 0 ? overlap_weights_.data() : nullptr,
               .covariate_outputs = nullptr,
               .covariance_factor = folding_.factor(),
               .covariance_factor_transposed = folding_.transposed()};
  }
  ResidualTerms(const ResidualTerms&) = delete;  // params point into it
  ResidualTerms& operator=(const ResidualTerms&) = delete;

  const ResidualParams<T>& params() const { return params_; }

  // The parameters as they are where OV has covariate blocks, which ask for the most room.
  ResidualParams<T> largest_params() const {
    ResidualParams<T> params = params_;
    params.covariate_outputs = covariate_outputs_.data();
    return params;
  }

  void prepare(const Weights<T>& weights, const PromptRange& range) {
    params_.prompts.range = range;
    folding_.projections(weights.kq, task_.dim_x, projections_);
    bool any = false;
    for (int64_t h = 0; h < task_.heads; ++h) {
      for (int64_t i = 0; i < task_.tasks; ++i) {
        const T* from = weights.ov.data() + (h * task_.tasks + i) * task_.dim();
        std::copy_n(from, task_.dim_x, covariate_outputs_.data() + (i * task_.heads + h) * task_.dim_x);
        any = any || std::any_of(from, from + task_.dim_x, [](T entry) { return entry != T(0); });
      }
    }
    params_.covariate_outputs = any ? covariate_outputs_.data() : nullptr;
    weigh_residuals(weights);
  }

  // The mean loss and its gradient from sums of which each prompt has share⁻¹ / N; `outside` (I, H, H) is added to the
  // products of heads, or null.
  double finish(const double* sums, const double* outside, double share, const Weights<T>& weights,
                Weights<T>& gradient) const {
    const int64_t heads = task_.heads;
    const double* products = sums + task_.dim_x * heads * task_.dim_x;
    const double* overlaps = products + params_.pairs() * task_.dim_x;
    const double* covariate_outputs = overlaps + (params_.overlap_weights ? heads * heads : 0);
    folding_.projections_backward(sums, share, task_.dim_x, gradient.kq);
    double loss = share * residual_loss(products, outside, share, weights, gradient);
    if (params_.overlap_weights) loss += share * noise_loss(overlaps, share, weights, gradient);
    if (params_.covariate_outputs) covariate_output_gradient(covariate_outputs, share, gradient);
    const double target_noise = task_.noisy_target ? task_.noise_std * task_.noise_std * double(task_.tasks) : 0;
    return loss + target_noise;
  }

  // Σ_i U_h[i,j] U_g[i,j].
  double label_product(const Weights<T>& weights, int64_t j, int64_t h, int64_t g) const {
    double sum = 0;
    for (int64_t i = 0; i < task_.tasks; ++i) sum += label(weights, h, i, j) * label(weights, g, i, j);
    return sum;
  }

 private:
  double label(const Weights<T>& weights, int64_t h, int64_t i, int64_t j) const {
    return weights.ov[(h * task_.tasks + i) * task_.dim() + task_.dim_x + j];
  }
  T& label_gradient(Weights<T>& gradient, int64_t h, int64_t i, int64_t j) const {
    return gradient.ov[(h * task_.tasks + i) * task_.dim() + task_.dim_x + j];
  }
  // R_ij[m].
  double residual(const Weights<T>& weights, int64_t i, int64_t j, int64_t m) const {
    return m == 0 ? double(i == j) : -label(weights, m - 1, i, j);
  }

  // Half of ∂²loss/∂v_m[c] ∂v_n[c] is λ_j Σ_i R_ij[m] R_ij[n], over the tasks j that read c.
  double curvature(const Weights<T>& weights, int64_t j, int64_t m, int64_t n) const {
    double sum = 0;
    for (int64_t i = 0; i < task_.tasks; ++i) sum += residual(weights, i, j, m) * residual(weights, i, j, n);
    return task_.signal[j] * sum;
  }

  void weigh_residuals(const Weights<T>& weights) {
    const int64_t vectors = 1 + task_.heads;
    std::vector<double> row(task_.dim_x);
    for (int64_t h = 0; h < task_.heads; ++h) {
      for (int64_t m = 0; m < vectors; ++m) {
        std::fill(row.begin(), row.end(), 0.0);
        for (int64_t j = 0; j < task_.tasks; ++j) {
          const double weight = 2 * curvature(weights, j, 1 + h, m);
          for (int64_t c = 0; c < task_.dim_x; ++c) row[c] += weight * task_.support[j * task_.dim_x + c];
        }
        std::copy(row.begin(), row.end(), residual_weights_.begin() + (h * vectors + m) * task_.dim_x);
      }
      for (int64_t g = 0; g < task_.heads; ++g) {
        overlap_weights_[h * task_.heads + g] = T(2 * task_.noise_std * task_.noise_std * shared_labels(weights, h, g));
      }
    }
  }

  // Σ_ij U_h[i,j] U_g[i,j].
  double shared_labels(const Weights<T>& weights, int64_t h, int64_t g) const {
    double sum = 0;
    for (int64_t j = 0; j < task_.tasks; ++j) sum += label_product(weights, j, h, g);
    return sum;
  }

  // Gram_j (1 + H, 1 + H).
  void fill_gram(int64_t j, const double* product, const double* outside, std::vector<double>& gram) const {
    const int64_t heads = task_.heads, vectors = 1 + heads;
    for (int64_t m = 0; m < vectors; ++m) {
      for (int64_t n = m; n < vectors; ++n, product += task_.dim_x) {
        double sum = 0;
        for (int64_t c = 0; c < task_.dim_x; ++c) sum += task_.support[j * task_.dim_x + c] * product[c];
        if (outside != nullptr && m > 0) sum += outside[(j * heads + m - 1) * heads + n - 1];
        gram[m * vectors + n] = gram[n * vectors + m] = sum;
      }
    }
  }

  // Σ over prompts of the residuals' part; its gradient in U, times `share`, is added.
  double residual_loss(const double* products, const double* outside, double share, const Weights<T>& weights,
                       Weights<T>& gradient) const {
    const int64_t vectors = 1 + task_.heads;
    double loss = 0;
    std::vector<double> gram(vectors * vectors);
    for (int64_t j = 0; j < task_.tasks; ++j) {
      fill_gram(j, products, outside, gram);
      for (int64_t i = 0; i < task_.tasks; ++i) {
        for (int64_t m = 0; m < vectors; ++m) {
          double along = 0;  // Σ_n Gram_j[m, n] R_ij[n]
          for (int64_t n = 0; n < vectors; ++n) along += gram[m * vectors + n] * residual(weights, i, j, n);
          loss += task_.signal[j] * residual(weights, i, j, m) * along;
          if (m > 0) label_gradient(gradient, m - 1, i, j) += T(-2 * share * task_.signal[j] * along);
        }
      }
    }
    return loss;
  }

  // The same of the label noise's part.
  double noise_loss(const double* overlaps, double share, const Weights<T>& weights, Weights<T>& gradient) const {
    const double variance = task_.noise_std * task_.noise_std;
    double loss = 0;
    for (int64_t h = 0; h < task_.heads; ++h) {
      for (int64_t g = 0; g < task_.heads; ++g) {
        const double overlap = overlaps[h * task_.heads + g];
        loss += variance * overlap * shared_labels(weights, h, g);
        for (int64_t i = 0; i < task_.tasks; ++i) {
          for (int64_t j = 0; j < task_.tasks; ++j) {
            label_gradient(gradient, h, i, j) += T(2 * share * variance * overlap * label(weights, g, i, j));
          }
        }
      }
    }
    return loss;
  }

  void covariate_output_gradient(const double* sums, double share, Weights<T>& gradient) const {
    for (int64_t h = 0; h < task_.heads; ++h) {
      for (int64_t i = 0; i < task_.tasks; ++i) {
        const double* from = sums + (i * task_.heads + h) * task_.dim_x;
        T* to = gradient.ov.data() + (h * task_.tasks + i) * task_.dim();
        for (int64_t c = 0; c < task_.dim_x; ++c) to[c] = T(share * from[c]);
      }
    }
  }

  const TaskSpec& task_;
  const Folding<T> folding_;
  std::vector<T> projections_, residual_weights_, overlap_weights_, covariate_outputs_;
  ResidualParams<T> params_;
};

}  // namespace mhicl
