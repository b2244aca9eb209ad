// The estimate that draws only what the logits read.
#include "../kernels.h"
#include "estimates.h"
#include "residual_terms.h"

namespace mhicl {
namespace {

template <class T>
class SubspaceEstimate : public Estimate<T> {
 public:
  SubspaceEstimate(const TaskSpec& task, int64_t n_prompts)
      : Estimate<T>(task, n_prompts), terms_(this->task_), support_(task.support.begin(), task.support.end()),
        support_sizes_(task.tasks), label_products_(task.tasks * task.heads * task.heads) {
    for (int64_t j = 0; j < task.tasks; ++j) support_sizes_[j] = T(support_size(j));
    const bool reads_all = std::all_of(support_.begin(), support_.end(), [](T reads) { return reads == T(1); });
    isotropic_ = reads_all && task.factor.empty();
  }

 protected:
  void prepare(const Weights<T>& weights, const PromptRange& range) override {
    const TaskSpec& task = this->task_;
    terms_.prepare(weights, range);
    T* at = label_products_.data();
    for (int64_t j = 0; j < task.tasks; ++j) {
      for (int64_t h = 0; h < task.heads; ++h) {
        for (int64_t g = 0; g < task.heads; ++g) {
          *at++ = T(2 * task.signal[j] * terms_.label_product(weights, j, h, g));
        }
      }
    }
  }
  int64_t workspace_size() const override { return kernels().step<T>().subspace.workspace(params()); }
  int64_t sums_size() const override { return SubspaceSums<T>::size(params()); }
  void run(int64_t begin, int64_t end, T* workspace, T* sums, double* loss) const override {
    kernels().step<T>().subspace.run(params(), begin, end, workspace, sums, loss);
  }
  // Every prompt is two contexts.
  double finish(const double* sums, double, const Weights<T>& weights, Weights<T>& gradient) override {
    const double* outside = sums + ResidualSums<T>::size(terms_.params());
    return terms_.finish(sums, outside, 0.5 / double(this->n_prompts_), weights, gradient);
  }

 private:
  SubspaceParams<T> params() const {
    return {terms_.params(), support_.data(), support_sizes_.data(), label_products_.data(), isotropic_};
  }

  // tr S_j Σ.
  double support_size(int64_t j) const {
    const TaskSpec& task = this->task_;
    double sum = 0;
    for (int64_t c = 0; c < task.dim_x; ++c) {
      double variance = task.factor.empty() ? 1 : 0;
      for (int64_t k = 0; k < task.dim_x && !task.factor.empty(); ++k) {
        variance += task.factor[c * task.dim_x + k] * task.factor[c * task.dim_x + k];
      }
      sum += task.support[j * task.dim_x + c] * variance;
    }
    return sum;
  }

  ResidualTerms<T> terms_;
  std::vector<T> support_, support_sizes_, label_products_;
  bool isotropic_;
};

}  // namespace

template <class T>
std::unique_ptr<Estimate<T>> subspace_estimate(const TaskSpec& task, int64_t n_prompts) {
  return std::make_unique<SubspaceEstimate<T>>(task, n_prompts);
}

template std::unique_ptr<Estimate<float>> subspace_estimate<float>(const TaskSpec&, int64_t);
template std::unique_ptr<Estimate<double>> subspace_estimate<double>(const TaskSpec&, int64_t);

}  // namespace mhicl
