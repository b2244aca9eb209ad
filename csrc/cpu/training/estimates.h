// The estimates there are, each made in a file of its own.
#pragma once

#include "../step/step.h"
#include "estimate.h"

namespace mhicl {

// A task as the kernels take it, of no range yet.
template <class T>
StepPrompts<T> step_prompts(const TaskSpec& task) {
  return {.range = {},
          .context_length = task.context_length,
          .dim_x = task.dim_x,
          .tasks = task.tasks,
          .heads = task.heads,
          .noise_std = T(task.noise_std),
          .noisy_target = task.noisy_target};
}

template <class T>
std::unique_ptr<Estimate<T>> sampled_estimate(const TaskSpec& task, int64_t n_prompts);

template <class T>
std::unique_ptr<Estimate<T>> conditional_estimate(const TaskSpec& task, int64_t n_prompts);

template <class T>
std::unique_ptr<Estimate<T>> subspace_estimate(const TaskSpec& task, int64_t n_prompts);

}  // namespace mhicl
