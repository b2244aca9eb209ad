#include "estimate.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../kernels.h"
#include "../step/step.h"
#include "estimates.h"
#include "symmetry.h"

namespace mhicl {
namespace {

constexpr int64_t kMostSlices = 64;

int64_t chunk_count(int64_t n_prompts) { return (n_prompts + kStepChunk - 1) / kStepChunk; }

// Fixed shares of the prompts, whole chunks each: enough to share the work out, few enough that their sums stay small
// beside it, and in memory.
int64_t slice_count(int64_t n_prompts, int64_t numbers_a_prompt, int64_t sums, int64_t sums_bytes) {
  constexpr int64_t room = int64_t(1) << 25;
  const int64_t affordable = n_prompts * numbers_a_prompt / (4 * std::max<int64_t>(1, sums));
  const int64_t fitting = room / std::max<int64_t>(1, sums_bytes);
  return std::min<int64_t>({chunk_count(n_prompts), std::max<int64_t>(8, std::min(affordable, fitting)), kMostSlices});
}

constexpr int64_t kLine = 64;  // bytes of a cache line

// The first element at the start of a cache line: a row of a tile is one, which a misaligned vector would straddle.
template <class T>
T* at_line(std::vector<T>& memory) {
  const auto before = -reinterpret_cast<uintptr_t>(memory.data()) % uintptr_t(kLine);
  return memory.data() + before / sizeof(T);
}

}  // namespace

template <class T>
void Estimate<T>::allocate(int threads) {
  if (slices_ == 0) {
    slices_ = slice_count(n_prompts_, task_.context_length * task_.dim_x, sums_size(), sums_size() * sizeof(T));
    partial_.resize(slices_ * sums_size());
    losses_.resize(slices_);
    sums_.resize(sums_size());
  }
  while (int(workspaces_.size()) < threads) workspaces_.emplace_back(workspace_size() + kLine / int64_t(sizeof(T)));
}

template <class T>
double Estimate<T>::operator()(const Weights<T>& weights, const PromptRange& range, Team& team, Weights<T>& gradient) {
  prepare(weights, range);
  allocate(team.threads());
  const int64_t chunks = chunk_count(n_prompts_);
  team.for_each(slices_, [&](int64_t slice, int thread) {
    const int64_t begin = chunks * slice / slices_ * kStepChunk, end = chunks * (slice + 1) / slices_ * kStepChunk;
    run(begin, std::min(end, n_prompts_), at_line(workspaces_[thread]), partial_.data() + slice * sums_size(),
        &losses_[slice]);
  });
  add_up(team);
  double loss = 0;
  for (const double part : losses_) loss += part;
  std::fill(gradient.kq.begin(), gradient.kq.end(), T(0));
  std::fill(gradient.ov.begin(), gradient.ov.end(), T(0));
  loss = finish(sums_.data(), loss, weights, gradient);
  if (!task_.atoms.empty()) Symmetries(task_).average(gradient);
  return loss;
}

// Σ over the slices, in order, piece by piece.
template <class T>
void Estimate<T>::add_up(Team& team) {
  constexpr int64_t piece = 2048;
  const int64_t size = sums_size();
  team.for_each((size + piece - 1) / piece, [&](int64_t i, int) {
    const int64_t begin = i * piece, end = std::min(size, begin + piece);
    kernels().update<T>().add_rows(partial_.data(), slices_, size, begin, end, sums_.data());
  });
}

int useful_threads(int64_t n_prompts, int64_t threads) {
  return int(std::min({threads, chunk_count(n_prompts), kMostSlices}));
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
