// Estimates of the population loss and its gradients in KQ and OV, over prompts that never exist in memory as a whole.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../../training_params.h"
#include "../sampler.h"
#include "sharing.h"
#include "team.h"

namespace mhicl {

// Combined weights, or the gradient in them.
template <class T>
struct Weights {
  std::vector<T> kq;  // (H, D, D)
  std::vector<T> ov;  // (H, I, D)

  explicit Weights(const TaskSpec& task)
      : kq(task.heads * task.dim() * task.dim()), ov(task.heads * task.tasks * task.dim()) {}
};

template <class T>
class Estimate {
 public:
  virtual ~Estimate() = default;

  // The loss and its gradient over the prompts of a step, each of the peers computing some. The same bits for any team.
  // stop: whether this process asks to stop, on return whether some process does. Throws PeersLost. An estimate has the
  // same peers all its life.
  double operator()(const Weights<T>& weights, const PromptRange& range, Team& team, Peers& peers, bool& stop,
                    Weights<T>& gradient);

 protected:
  Estimate(const TaskSpec& task, int64_t n_prompts) : task_(task), n_prompts_(n_prompts) {}

  // Before any prompt of a step.
  virtual void prepare(const Weights<T>& weights, const PromptRange& range) = 0;
  virtual int64_t workspace_size() const = 0;
  virtual int64_t sums_size() const = 0;
  // Sums over prompts [begin, end), on any thread.
  virtual void run(int64_t begin, int64_t end, T* workspace, T* sums, double* loss) const = 0;
  // From the sums over all prompts to the mean loss and the mean gradient, which is zero on entry.
  virtual double finish(const double* sums, double loss, const Weights<T>& weights, Weights<T>& gradient) = 0;

  const TaskSpec task_;
  const int64_t n_prompts_;

 private:
  void allocate(const GroupSpec& group, int threads);
  void add_up(const Range& slices, double* row, Team& team);

  std::optional<Sharing> sharing_;
  std::vector<std::vector<T>> workspaces_;  // one a thread, with a cache line to spare
  std::vector<T> partial_;                  // (slices, sums)
  std::vector<double> losses_;              // (slices)
};

// What an estimate demands of the weights: "conditional" that logits do not read labels, KQ[:, d:, :d] = 0, "subspace" that
// OV has no covariate block either, "sampled" nothing; and that the symmetries leave them alone where gradients are
// averaged over these. Throws std::invalid_argument where that does not hold.
template <class T>
void check_weights(const std::string& name, const TaskSpec& task, const Weights<T>& weights);

// The estimate of that name.
template <class T>
std::unique_ptr<Estimate<T>> make_estimate(const std::string& name, const TaskSpec& task, int64_t n_prompts);

}  // namespace mhicl
