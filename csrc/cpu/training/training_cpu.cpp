// The operators of the fused step and of native training: check, unpack tensors, call.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <stdexcept>
#include <tuple>
#include <vector>

#include "../../training_checks.h"
#include "training.h"

namespace mhicl {
namespace {

// What check_weights throws, as a ValueError.
template <class Body>
auto with_value_errors(const Body& body) {
  try {
    return body();
  } catch (const std::invalid_argument& error) {
    C10_THROW_ERROR(ValueError, error.what());
  }
}

template <class T>
std::tuple<double, at::Tensor, at::Tensor> step_of(const TaskSpec& task, const std::string& estimator,
                                                   int64_t n_prompts, const PromptRange& range, int threads,
                                                   const at::Tensor& kq, const at::Tensor& ov) {
  Weights<T> weights(task), gradient(task);
  std::copy_n(kq.const_data_ptr<T>(), kq.numel(), weights.kq.data());
  std::copy_n(ov.const_data_ptr<T>(), ov.numel(), weights.ov.data());
  with_value_errors([&] { check_weights(estimator, task, weights); });
  Peers alone({});
  Team team(useful_threads(alone.group(), n_prompts, threads));
  bool stop = false;
  const double loss = (*make_estimate<T>(estimator, task, n_prompts))(weights, range, team, alone, stop, gradient);
  at::Tensor grad_kq = at::empty_like(kq), grad_ov = at::empty_like(ov);
  std::copy(gradient.kq.begin(), gradient.kq.end(), grad_kq.mutable_data_ptr<T>());
  std::copy(gradient.ov.begin(), gradient.ov.end(), grad_ov.mutable_data_ptr<T>());
  return {loss, grad_kq, grad_ov};
}

std::tuple<double, at::Tensor, at::Tensor> flow_step(const at::Tensor& kq, const at::Tensor& ov,
                                                     const at::Tensor& support, const at::Tensor& signal,
                                                     const std::optional<at::Tensor>& covariance_factor,
                                                     const std::optional<at::Tensor>& atoms, int64_t context_length,
                                                     double noise_std, bool noisy_target,
                                                     c10::string_view estimator, int64_t n_prompts, int64_t seed,
                                                     int64_t step, int64_t first_prompt, int64_t threads) {
  const std::string name(estimator);
  const TaskSpec task = checked_step(kq, ov, support, signal, covariance_factor, atoms, context_length, noise_std,
                                     noisy_target, name, n_prompts, step, first_prompt, threads);
  const PromptRange range = {uint64_t(seed), uint32_t(step), uint64_t(first_prompt)};
  return AT_DISPATCH_FLOATING_TYPES(kq.scalar_type(), "flow_step", [&] {
    return step_of<scalar_t>(task, name, n_prompts, range, int(threads), kq, ov);
  });
}

// The arrays' pointers, of parameters and of what the rule keeps for each.
template <class T>
TrainedArrays<T> trained_arrays(const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& state) {
  TrainedArrays<T> arrays;
  for (const at::Tensor& parameter : parameters) {
    arrays.parameters.push_back(parameter.mutable_data_ptr<T>());
    arrays.sizes.push_back(parameter.numel());
  }
  for (size_t i = 0; i < state.size(); ++i) {
    auto& into = i < parameters.size() ? arrays.first : arrays.second;
    into.push_back(state[i].mutable_data_ptr<T>());
  }
  return arrays;
}

StepsDone train_steps(
    const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& state, const at::Tensor& support,
    const at::Tensor& signal, const std::optional<at::Tensor>& covariance_factor, const std::optional<at::Tensor>& atoms,
    int64_t context_length, double noise_std, bool noisy_target, c10::string_view estimator, int64_t n_prompts,
    int64_t seed, int64_t step, int64_t n_steps, double max_seconds, double scale, c10::string_view optimizer,
    double learning_rate, double step_cap, double momentum, double weight_decay, double flow_time, int64_t threads,
    int64_t rank, int64_t world, c10::string_view group, bool tree, bool stop) {
  const std::pair<TaskSpec, TrainingSpec> checked =
      checked_training(parameters, state, support, signal, covariance_factor, atoms, context_length, noise_std,
                       noisy_target, estimator, n_prompts, seed, step, n_steps, scale, optimizer, learning_rate, step_cap,
                       momentum, weight_decay, threads);
  const GroupSpec peers = checked_group(rank, world, group, tree);
  const TaskSpec& task = checked.first;
  const TrainingSpec& spec = checked.second;
  const Stretch out = AT_DISPATCH_FLOATING_TYPES(parameters[0].scalar_type(), "train_steps", [&] {
    const TrainedArrays<scalar_t> arrays = trained_arrays<scalar_t>(parameters, state);
    return with_value_errors([&] {
      return train<scalar_t>(task, spec, peers, arrays, step, n_steps, max_seconds, flow_time, int(threads), stop);
    });
  });
  return {out.steps_done, out.finite,    out.first_loss, out.first_gradient_norm, out.last_loss,
          out.flow_time,  out.step_size, out.stopped,    out.lost};
}

}  // namespace
}  // namespace mhicl

TORCH_LIBRARY_IMPL(mhicl, CPU, m) {
  m.impl("flow_step", mhicl::flow_step);
  m.impl("train_steps", mhicl::train_steps);
}
