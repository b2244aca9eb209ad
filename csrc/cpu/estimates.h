// The estimates there are, each made in a file of its own.
#pragma once

#include "estimate.h"

namespace mhicl {

template <class T>
std::unique_ptr<Estimate<T>> sampled_estimate(const TaskSpec& task, int64_t n_prompts);

template <class T>
std::unique_ptr<Estimate<T>> conditional_estimate(const TaskSpec& task, int64_t n_prompts);

template <class T>
std::unique_ptr<Estimate<T>> subspace_estimate(const TaskSpec& task, int64_t n_prompts);

}  // namespace mhicl
