// The estimate with coefficients and label noise integrated out, and the residuals that it shares with others: with U_h
// OV's label block and R_ij = (δ_ij, −U_1[i,j], …, −U_H[i,j]), the loss of vectors v = (x_q, a_1, …, a_H) is
//   Σ_ij λ_j Σ_mn R_ij[m] R_ij[n] Gram_j[m, n] + σ² Σ_ij Σ_hg U_h[i,j] U_g[i,j] K_hg (+ σ² I),
// Gram_j[m, n] = Σ_{c in S_j} v_m[c] v_n[c]: linear in sums over prompts.
#include <algorithm>

#include "estimates.h"
#include "folding.h"
#include "step.h"

namespace mhicl {
namespace {

template <class T>
class ConditionalEstimate : public Estimate<T> {
 public:
  ConditionalEstimate(const TaskSpec& task, int64_t n_prompts)
      : Estimate<T>(task, n_prompts), folding_(task), projections_(task.dim_x * task.heads * task.dim_x),
        residual_weights_(task.heads * (1 + task.heads) * task.dim_x), overlap_weights_(task.heads * task.heads),
        covariate_outputs_(task.tasks * task.heads * task.dim_x) {
    params_ = {.prompts = {.range = {},
                           .context_length = task.context_length,
                           .dim_x = task.dim_x,
                           .tasks = task.tasks,
                           .heads = task.heads,
                           .noise_std = T(task.noise_std),
                           .noisy_target = task.noisy_target},
               .projections = projections_.data(),
               .residual_weights = residual_weights_.data(),
               .overlap_weights = task.noise_std > 0 ? overlap_weights_.data() : nullptr,
               // The workspace and the sums have room for them, whether or not a step needs it.
               .covariate_outputs = covariate_outputs_.data(),
               .covariance_factor = folding_.factor(),
               .covariance_factor_transposed = folding_.transposed()};
    sums_size_ = ConditionalSums<T>::size(params_);
    workspace_size_ = kernels().step<T>().conditional.workspace(params_);
  }

 protected:
  void prepare(const Weights<T>& weights, const PromptRange& range) override {
    const TaskSpec& task = this->task_;
    params_.prompts.range = range;
    folding_.projections(weights.kq, task.dim_x, projections_);
    bool any = false;
    for (int64_t h = 0; h < task.heads; ++h) {
      for (int64_t i = 0; i < task.tasks; ++i) {
        const T* from = weights.ov.data() + (h * task.tasks + i) * task.dim();
        std::copy_n(from, task.dim_x, covariate_outputs_.data() + (i * task.heads + h) * task.dim_x);
        any = any || std::any_of(from, from + task.dim_x, [](T entry) { return entry != T(0); });
      }
    }
    params_.covariate_outputs = any ? covariate_outputs_.data() : nullptr;
    weigh_residuals(weights);
  }
  int64_t workspace_size() const override { return workspace_size_; }
  int64_t sums_size() const override { return sums_size_; }
  void run(int64_t begin, int64_t end, T* workspace, T* sums, double* loss) const override {
    kernels().step<T>().conditional.run(params_, begin, end, workspace, sums, loss);
  }

  double finish(const double* sums, double loss, const Weights<T>& weights, Weights<T>& gradient) override {
    const TaskSpec& task = this->task_;
    const double share = 1.0 / double(this->n_prompts_);
    const int64_t heads = task.heads, square = task.dim_x * heads * task.dim_x;
    const double* products = sums + square;
    const double* overlaps = products + ConditionalSums<T>::pairs(params_) * task.dim_x;
    const double* covariate_outputs = overlaps + (params_.overlap_weights ? heads * heads : 0);
    folding_.projections_backward(sums, share, task.dim_x, gradient.kq);
    loss += residual_loss(products, share, weights, gradient);
    if (params_.overlap_weights) loss += noise_loss(overlaps, share, weights, gradient);
    if (params_.covariate_outputs) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < task.tasks; ++i) {
          for (int64_t c = 0; c < task.dim_x; ++c) {
            gradient.ov[(h * task.tasks + i) * task.dim() + c] =
                T(share * covariate_outputs[(i * heads + h) * task.dim_x + c]);
          }
        }
      }
    }
    const double target_noise = task.noisy_target ? task.noise_std * task.noise_std * double(task.tasks) : 0;
    return loss * share + target_noise;
  }

 private:
  double label(const Weights<T>& weights, int64_t h, int64_t i, int64_t j) const {
    return weights.ov[(h * this->task_.tasks + i) * this->task_.dim() + this->task_.dim_x + j];
  }
  T& label_gradient(Weights<T>& gradient, int64_t h, int64_t i, int64_t j) const {
    return gradient.ov[(h * this->task_.tasks + i) * this->task_.dim() + this->task_.dim_x + j];
  }
  // R_ij[m].
  double residual(const Weights<T>& weights, int64_t i, int64_t j, int64_t m) const {
    return m == 0 ? double(i == j) : -label(weights, m - 1, i, j);
  }

  // Half of ∂²loss/∂v_m[c] ∂v_n[c] is λ_j Σ_i R_ij[m] R_ij[n], over the tasks j that read c.
  double curvature(const Weights<T>& weights, int64_t j, int64_t m, int64_t n) const {
    double sum = 0;
    for (int64_t i = 0; i < this->task_.tasks; ++i) sum += residual(weights, i, j, m) * residual(weights, i, j, n);
    return this->task_.signal[j] * sum;
  }

  void weigh_residuals(const Weights<T>& weights) {
    const TaskSpec& task = this->task_;
    const int64_t vectors = 1 + task.heads;
    std::vector<double> row(task.dim_x);
    for (int64_t h = 0; h < task.heads; ++h) {
      for (int64_t m = 0; m < vectors; ++m) {
        std::fill(row.begin(), row.end(), 0.0);
        for (int64_t j = 0; j < task.tasks; ++j) {
          const double weight = 2 * curvature(weights, j, 1 + h, m);
          for (int64_t c = 0; c < task.dim_x; ++c) row[c] += weight * task.support[j * task.dim_x + c];
        }
        std::copy(row.begin(), row.end(), residual_weights_.begin() + (h * vectors + m) * task.dim_x);
      }
      for (int64_t g = 0; g < task.heads; ++g) {
        overlap_weights_[h * task.heads + g] = T(2 * task.noise_std * task.noise_std * shared_labels(weights, h, g));
      }
    }
  }

  // Σ_ij U_h[i,j] U_g[i,j].
  double shared_labels(const Weights<T>& weights, int64_t h, int64_t g) const {
    double sum = 0;
    for (int64_t i = 0; i < this->task_.tasks; ++i) {
      for (int64_t j = 0; j < this->task_.tasks; ++j) sum += label(weights, h, i, j) * label(weights, g, i, j);
    }
    return sum;
  }

  // Σ over prompts of the residuals' part; its gradient in U, times `share`, is added.
  double residual_loss(const double* products, double share, const Weights<T>& weights, Weights<T>& gradient) const {
    const TaskSpec& task = this->task_;
    const int64_t vectors = 1 + task.heads;
    double loss = 0;
    std::vector<double> gram(vectors * vectors);
    for (int64_t j = 0; j < task.tasks; ++j) {
      const double* product = products;
      for (int64_t m = 0; m < vectors; ++m) {
        for (int64_t n = m; n < vectors; ++n, product += task.dim_x) {
          double sum = 0;
          for (int64_t c = 0; c < task.dim_x; ++c) sum += task.support[j * task.dim_x + c] * product[c];
          gram[m * vectors + n] = gram[n * vectors + m] = sum;
        }
      }
      for (int64_t i = 0; i < task.tasks; ++i) {
        for (int64_t m = 0; m < vectors; ++m) {
          double along = 0;  // Σ_n Gram_j[m, n] R_ij[n]
          for (int64_t n = 0; n < vectors; ++n) along += gram[m * vectors + n] * residual(weights, i, j, n);
          loss += task.signal[j] * residual(weights, i, j, m) * along;
          if (m > 0) label_gradient(gradient, m - 1, i, j) += T(-2 * share * task.signal[j] * along);
        }
      }
    }
    return loss;
  }

  // The same of the label noise's part.
  double noise_loss(const double* overlaps, double share, const Weights<T>& weights, Weights<T>& gradient) const {
    const TaskSpec& task = this->task_;
    const double variance = task.noise_std * task.noise_std;
    double loss = 0;
    for (int64_t h = 0; h < task.heads; ++h) {
      for (int64_t g = 0; g < task.heads; ++g) {
        const double overlap = overlaps[h * task.heads + g];
        loss += variance * overlap * shared_labels(weights, h, g);
        for (int64_t i = 0; i < task.tasks; ++i) {
          for (int64_t j = 0; j < task.tasks; ++j) {
            label_gradient(gradient, h, i, j) += T(2 * share * variance * overlap * label(weights, g, i, j));
          }
        }
      }
    }
    return loss;
  }

  Folding<T> folding_;
  std::vector<T> projections_, residual_weights_, overlap_weights_, covariate_outputs_;
  ConditionalParams<T> params_;
  int64_t sums_size_, workspace_size_;
};

}  // namespace

template <class T>
std::unique_ptr<Estimate<T>> conditional_estimate(const TaskSpec& task, int64_t n_prompts) {
  return std::make_unique<ConditionalEstimate<T>>(task, n_prompts);
}

template std::unique_ptr<Estimate<float>> conditional_estimate<float>(const TaskSpec&, int64_t);
template std::unique_ptr<Estimate<double>> conditional_estimate<double>(const TaskSpec&, int64_t);

}  // namespace mhicl
