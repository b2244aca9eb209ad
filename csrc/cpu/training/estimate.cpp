#include "estimate.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../kernels.h"
#include "estimates.h"
#include "symmetry.h"

namespace mhicl {
namespace {

constexpr int64_t kLine = 64;  // bytes of a cache line

// The first element at the start of a cache line: a row of a tile is one, which a misaligned vector would straddle.
template <class T>
T* at_line(std::vector<T>& memory) {
  const auto before = -reinterpret_cast<uintptr_t>(memory.data()) % uintptr_t(kLine);
  return memory.data() + before / sizeof(T);
}

}  // namespace

template <class T>
void Estimate<T>::allocate(const GroupSpec& group, int threads) {
  if (!sharing_) {
    const SliceCost cost = {.numbers_a_prompt = task_.context_length * task_.dim_x,
                            .sums = sums_size(),
                            .bytes = sums_size() * int64_t(sizeof(T))};
    sharing_.emplace(group, n_prompts_, cost);
    partial_.resize(sharing_->slices() * sums_size());
    losses_.resize(sharing_->slices());
  }
  while (int(workspaces_.size()) < threads) workspaces_.emplace_back(workspace_size() + kLine / int64_t(sizeof(T)));
}

template <class T>
double Estimate<T>::operator()(const Weights<T>& weights, const PromptRange& range, Team& team, Peers& peers, bool& stop,
                               Weights<T>& gradient) {
  prepare(weights, range);
  allocate(peers.group(), team.threads());
  team.for_each(sharing_->slices(), [&](int64_t slice, int thread) {
    const auto [begin, end] = sharing_->prompts(slice);
    run(begin, end, at_line(workspaces_[thread]), partial_.data() + slice * sums_size(), &losses_[slice]);
  });
  for (size_t row = 0; row < sharing_->rows().size(); ++row) add_up(sharing_->rows()[row], sharing_->row(row), team);
  const Sharing::Total total = sharing_->exchange(peers, stop);
  stop = total.stop;
  std::fill(gradient.kq.begin(), gradient.kq.end(), T(0));
  std::fill(gradient.ov.begin(), gradient.ov.end(), T(0));
  const double loss = finish(total.sums, total.loss, weights, gradient);
  if (!task_.atoms.empty()) Symmetries(task_).average(gradient);
  return loss;
}

// Σ over some slices up their tree, piece by piece: sums, then the loss.
template <class T>
void Estimate<T>::add_up(const Range& slices, double* row, Team& team) {
  constexpr int64_t piece = 2048;
  const int64_t size = sums_size();
  team.for_each((size + piece - 1) / piece, [&](int64_t i, int) {
    const int64_t begin = i * piece, end = std::min(size, begin + piece);
    kernels().update<T>().add_rows(partial_.data() + slices.begin * size, slices.size(), size, begin, end, row);
  });
  kernels().update<double>().add_rows(losses_.data() + slices.begin, slices.size(), 1, 0, 1, row + size);
}

template <class T>
void check_weights(const std::string& name, const TaskSpec& task, const Weights<T>& weights) {
  const int64_t d = task.dim_x, dim = task.dim();
  if (!task.atoms.empty() && !Symmetries(task).leave_alone(weights)) {
    throw std::invalid_argument(kNeedsSymmetry);
  }
  // != so that NaN counts.
  const auto any = [&](const T* row) { return std::any_of(row, row + d, [](T entry) { return entry != T(0); }); };
  if (name == "sampled") return;
  for (int64_t row = 0; row < task.heads * dim; ++row) {
    if (row % dim >= d && any(weights.kq.data() + row * dim)) {
      throw std::invalid_argument(needs_no_label_logits(name, d));
    }
  }
  if (name == "conditional") return;
  for (int64_t row = 0; row < task.heads * task.tasks; ++row) {
    if (any(weights.ov.data() + row * dim)) {
      throw std::invalid_argument("the " + name + " estimate needs outputs that do not read covariates, OV[:, :, :" +
                                  std::to_string(d) + "] = 0");
    }
  }
}

template <class T>
std::unique_ptr<Estimate<T>> make_estimate(const std::string& name, const TaskSpec& task, int64_t n_prompts) {
  if (name == "sampled") return sampled_estimate<T>(task, n_prompts);
  if (name == "conditional") return conditional_estimate<T>(task, n_prompts);
  if (name == "subspace") return subspace_estimate<T>(task, n_prompts);
  throw std::invalid_argument("estimator must be sampled, conditional or subspace, got " + name);
}

template class Estimate<float>;
template class Estimate<double>;
template std::unique_ptr<Estimate<float>> make_estimate<float>(const std::string&, const TaskSpec&, int64_t);
template std::unique_ptr<Estimate<double>> make_estimate<double>(const std::string&, const TaskSpec&, int64_t);
template void check_weights<float>(const std::string&, const TaskSpec&, const Weights<float>&);
template void check_weights<double>(const std::string&, const TaskSpec&, const Weights<double>&);

}  // namespace mhicl
