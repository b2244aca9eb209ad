// The estimate with coefficients and label noise integrated out.
#include "../kernels.h"
#include "estimates.h"
#include "residual_terms.h"

namespace mhicl {
namespace {

template <class T>
class ConditionalEstimate : public Estimate<T> {
 public:
  ConditionalEstimate(const TaskSpec& task, int64_t n_prompts) : Estimate<T>(task, n_prompts), terms_(this->task_) {}

 protected:
  void prepare(const Weights<T>& weights, const PromptRange& range) override { terms_.prepare(weights, range); }
  int64_t workspace_size() const override {
    return kernels().step<T>().conditional.workspace(terms_.largest_params());
  }
  int64_t sums_size() const override { return ResidualSums<T>::size(terms_.largest_params()); }
  void run(int64_t begin, int64_t end, T* workspace, T* sums, double* loss) const override {
    kernels().step<T>().conditional.run(terms_.params(), begin, end, workspace, sums, loss);
  }
  // `loss` is the covariate outputs' part.
  double finish(const double* sums, double loss, const Weights<T>& weights, Weights<T>& gradient) override {
    const double share = 1 / double(this->n_prompts_);
    return share * loss + terms_.finish(sums, nullptr, share, weights, gradient);
  }

 private:
  ResidualTerms<T> terms_;
};

}  // namespace

template <class T>
std::unique_ptr<Estimate<T>> conditional_estimate(const TaskSpec& task, int64_t n_prompts) {
  return std::make_unique<ConditionalEstimate<T>>(task, n_prompts);
}

template std::unique_ptr<Estimate<float>> conditional_estimate<float>(const TaskSpec&, int64_t);
template std::unique_ptr<Estimate<double>> conditional_estimate<double>(const TaskSpec&, int64_t);

}  // namespace mhicl
