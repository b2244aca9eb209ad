// The estimate over drawn prompts.
#include <algorithm>
#include <cmath>

#include "../step/step.h"
#include "estimates.h"
#include "folding.h"

namespace mhicl {
namespace {

template <class T>
class SampledEstimate : public Estimate<T> {
 public:
  SampledEstimate(const TaskSpec& task, int64_t n_prompts)
      : Estimate<T>(task, n_prompts), folding_(task), projections_(task.dim_x * task.heads * task.dim()),
        outputs_(task.tasks * task.heads * task.dim()), coefficient_scale_(task.tasks * task.dim_x) {
    for (int64_t i = 0; i < task.tasks; ++i) {
      for (int64_t j = 0; j < task.dim_x; ++j) {
        const int64_t at = i * task.dim_x + j;
        coefficient_scale_[at] = T(std::sqrt(task.signal[i]) * task.support[at]);
      }
    }
    params_ = {.prompts = step_prompts<T>(task),
               .projections = projections_.data(),
               .outputs = outputs_.data(),
               .coefficient_scale = coefficient_scale_.data(),
               .covariance_factor = folding_.factor()};
  }

 protected:
  void prepare(const Weights<T>& weights, const PromptRange& range) override {
    params_.prompts.range = range;
    folding_.projections(weights.kq, this->task_.dim(), projections_);
    folding_.outputs(weights.ov, outputs_);
  }
  int64_t workspace_size() const override { return kernels().step<T>().sampled.workspace(params_); }
  int64_t sums_size() const override { return SampledSums<T>::size(params_.prompts); }
  void run(int64_t begin, int64_t end, T* workspace, T* sums, double* loss) const override {
    kernels().step<T>().sampled.run(params_, begin, end, workspace, sums, loss);
  }
  double finish(const double* sums, double loss, const Weights<T>&, Weights<T>& gradient) override {
    const double share = 1.0 / double(this->n_prompts_);
    folding_.projections_backward(sums, share, this->task_.dim(), gradient.kq);
    folding_.outputs_backward(sums + this->task_.dim_x * this->task_.heads * this->task_.dim(), share, gradient.ov);
    return loss * share;
  }

 private:
  Folding<T> folding_;
  std::vector<T> projections_, outputs_, coefficient_scale_;
  SampledParams<T> params_;
};

}  // namespace

template <class T>
std::unique_ptr<Estimate<T>> sampled_estimate(const TaskSpec& task, int64_t n_prompts) {
  return std::make_unique<SampledEstimate<T>>(task, n_prompts);
}

template std::unique_ptr<Estimate<float>> sampled_estimate<float>(const TaskSpec&, int64_t);
template std::unique_ptr<Estimate<double>> sampled_estimate<double>(const TaskSpec&, int64_t);

}  // namespace mhicl
