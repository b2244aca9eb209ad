// The operators of the fused step and of native training: check, unpack tensors, call.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <stdexcept>
#include <tuple>
#include <vector>

#include "../../checks.h"
#include "training.h"

namespace mhicl {
namespace {

void check_array(const char* name, const at::Tensor& tensor, at::IntArrayRef shape, at::ScalarType dtype) {
  check_shape(name, tensor, shape);
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must have dtype ", dtype, ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device().is_cpu() && tensor.is_contiguous(), name, " must be contiguous on the CPU");
}

std::vector<double> numbers(const char* name, const at::Tensor& tensor, at::IntArrayRef shape) {
  check_array(name, tensor, shape, at::kDouble);
  const double* begin = tensor.const_data_ptr<double>();
  return {begin, begin + tensor.numel()};
}

TaskSpec task_spec(const at::Tensor& support, const at::Tensor& signal, const std::optional<at::Tensor>& factor,
                   const std::optional<at::Tensor>& atoms, int64_t heads, int64_t context_length, double noise_std,
                   bool noisy_target) {
  TORCH_CHECK_VALUE(support.dim() == 2 && support.numel() > 0, "support must be (tasks, covariates), got shape ",
                    support.sizes());
  TORCH_CHECK_VALUE(context_length >= 0, "context_length must be at least 0, got ", context_length);
  TORCH_CHECK_VALUE(heads >= 1, "there must be at least 1 head, got ", heads);
  TORCH_CHECK_VALUE(noise_std >= 0, "noise_std must be at least 0, got ", noise_std);
  const int64_t tasks = support.size(0), d = support.size(1);
  TaskSpec task = {.dim_x = d,
                   .tasks = tasks,
                   .context_length = context_length,
                   .heads = heads,
                   .noise_std = noise_std,
                   .noisy_target = noisy_target,
                   .support = numbers("support", support, {tasks, d}),
                   .signal = numbers("signal", signal, {tasks}),
                   .factor = {},
                   .atoms = {}};
  if (factor) task.factor = numbers("covariance_factor", *factor, {d, d});
  if (atoms) {
    TORCH_CHECK_VALUE(!factor, "the symmetries are those of white covariates: expected atoms or covariance_factor");
    check_array("atoms", *atoms, {d}, at::kLong);
    const int64_t* begin = atoms->const_data_ptr<int64_t>();
    for (int64_t c = 0; c < d; ++c) {
      TORCH_CHECK_VALUE(begin[c] >= 0 && begin[c] < d, "atoms must lie in [0, ", d, "), got ", begin[c]);
    }
    task.atoms.assign(begin, begin + d);
  }
  return task;
}

void check_estimate(const std::string& estimator, int64_t n_prompts, int64_t first_prompt, int64_t step, int64_t n_steps,
                    int64_t threads) {
  TORCH_CHECK_VALUE(estimator == "sampled" || estimator == "conditional" || estimator == "subspace",
                    "estimator must be sampled, conditional or subspace, got ", estimator);
  TORCH_CHECK_VALUE(n_prompts >= 1, "n_prompts must be at least 1, got ", n_prompts);
  TORCH_CHECK_VALUE(first_prompt >= 0 && first_prompt <= (int64_t(1) << 56) - n_prompts,
                    "prompts must lie in [0, 2**56), got first_prompt=", first_prompt, " with n_prompts=", n_prompts);
  TORCH_CHECK_VALUE(step >= 0 && n_steps >= 0 && step <= (int64_t(1) << 32) && n_steps <= (int64_t(1) << 32) - step,
                    "steps must lie in [0, 2**32), got step=", step, ", n_steps=", n_steps);
  TORCH_CHECK_VALUE(threads >= 1, "threads must be at least 1, got ", threads);
}

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
  Team team(useful_threads(n_prompts, threads));
  const double loss = (*make_estimate<T>(estimator, task, n_prompts))(weights, range, team, gradient);
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
  TORCH_CHECK_VALUE(kq.dim() == 3, "kq must be (heads, dim, dim), got shape ", kq.sizes());
  const TaskSpec task =
      task_spec(support, signal, covariance_factor, atoms, kq.size(0), context_length, noise_std, noisy_target);
  const std::string name(estimator);
  check_estimate(name, n_prompts, first_prompt, step, 1, threads);
  check_array("kq", kq, {task.heads, task.dim(), task.dim()}, kq.scalar_type());
  check_array("ov", ov, {task.heads, task.tasks, task.dim()}, kq.scalar_type());
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

void check_rule(const TrainingSpec& spec, size_t parameters, size_t state) {
  const std::string& name = spec.optimizer;
  TORCH_CHECK_VALUE(name == "flow" || name == "sgd" || name == "adam" || name == "adamw",
                    "optimizer must be flow, sgd, adam or adamw, got ", name);
  TORCH_CHECK_VALUE(spec.momentum >= 0 && spec.momentum < 1, "momentum must lie in [0, 1), got ", spec.momentum);
  const size_t kept = name == "flow" ? 0 : name == "sgd" ? (spec.momentum > 0 ? 1 : 0) : 2;
  TORCH_CHECK_VALUE(state == kept * parameters, name, " keeps ", kept, " tensors for each of ", parameters,
                    " parameters, got ", state);
}

// E of factored parameters, D of combined ones; every tensor checked.
int64_t checked_width(const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& state, int64_t tasks,
                      int64_t dim) {
  TORCH_CHECK_VALUE((parameters.size() == 2 || parameters.size() == 4) && parameters[0].dim() == 3,
                    "parameters must be [kq, ov] or [w_q, w_k, w_v, w_o], got ", parameters.size(), " tensors");
  const int64_t heads = parameters[0].size(0), width = parameters[0].size(1);
  const bool combined = parameters.size() == 2;
  const size_t squares = combined ? 1 : 3;
  for (size_t i = 0; i < parameters.size() + state.size(); ++i) {
    const size_t which = i % parameters.size();
    const std::vector<int64_t> shape = which < squares ? std::vector<int64_t>{heads, combined ? dim : width, dim}
                                                       : std::vector<int64_t>{heads, tasks, width};
    check_array(i < parameters.size() ? "a parameter" : "the optimizer's state",
                  i < parameters.size() ? parameters[i] : state[i - parameters.size()], shape,
                  parameters[0].scalar_type());
  }
  return width;
}

std::tuple<int64_t, bool, double, double, double, double, double> train_steps(
    const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& state, const at::Tensor& support,
    const at::Tensor& signal, const std::optional<at::Tensor>& covariance_factor, const std::optional<at::Tensor>& atoms,
    int64_t context_length, double noise_std, bool noisy_target, c10::string_view estimator, int64_t n_prompts,
    int64_t seed, int64_t step, int64_t n_steps, double max_seconds, double scale, c10::string_view optimizer,
    double learning_rate, double step_cap, double momentum, double weight_decay, double flow_time, int64_t threads) {
  TORCH_CHECK_VALUE(support.dim() == 2, "support must be (tasks, covariates), got shape ", support.sizes());
  const int64_t width = checked_width(parameters, state, support.size(0), support.size(0) + support.size(1));
  const TaskSpec task = task_spec(support, signal, covariance_factor, atoms, parameters[0].size(0), context_length,
                                  noise_std, noisy_target);
  const TrainingSpec spec = {
      .estimator = std::string(estimator),
      .n_prompts = n_prompts,
      .seed = uint64_t(seed),
      .parameterisation = parameters.size() == 2 ? Parameterisation::combined : Parameterisation::factored,
      .width = width,
      .scale = scale,
      .optimizer = std::string(optimizer),
      .learning_rate = learning_rate,
      .step_cap = step_cap,
      .momentum = momentum,
      .weight_decay = weight_decay};
  check_estimate(spec.estimator, n_prompts, 0, step, n_steps, threads);
  check_rule(spec, parameters.size(), state.size());
  const Stretch out = AT_DISPATCH_FLOATING_TYPES(parameters[0].scalar_type(), "train_steps", [&] {
    const TrainedArrays<scalar_t> arrays = trained_arrays<scalar_t>(parameters, state);
    return with_value_errors([&] {
      return train<scalar_t>(task, spec, arrays, step, n_steps, max_seconds, flow_time, int(threads));
    });
  });
  return {out.steps_done, out.finite, out.first_loss, out.first_gradient_norm, out.last_loss, out.flow_time,
          out.step_size};
}

}  // namespace
}  // namespace mhicl

TORCH_LIBRARY_IMPL(mhicl, CPU, m) {
  m.impl("flow_step", mhicl::flow_step);
  m.impl("train_steps", mhicl::train_steps);
}
