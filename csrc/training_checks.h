// What the operators of the fused step and of training demand of their arguments, on any device.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "training_params.h"

namespace mhicl {

inline void check_array(const char* name, const at::Tensor& tensor, at::IntArrayRef shape, at::ScalarType dtype,
                        at::Device device = at::kCPU) {
  check_shape(name, tensor, shape);
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must have dtype ", dtype, ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == device && tensor.is_contiguous(), name, " must be contiguous on ", device);
}

inline std::vector<double> numbers(const char* name, const at::Tensor& tensor, at::IntArrayRef shape) {
  check_array(name, tensor, shape, at::kDouble);
  const double* begin = tensor.const_data_ptr<double>();
  return {begin, begin + tensor.numel()};
}

inline TaskSpec task_spec(const at::Tensor& support, const at::Tensor& signal, const std::optional<at::Tensor>& factor,
                          const std::optional<at::Tensor>& atoms, int64_t heads, int64_t context_length,
                          double noise_std, bool noisy_target) {
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

inline void check_estimate(const std::string& estimator, int64_t n_prompts, int64_t first_prompt, int64_t step,
                           int64_t n_steps, int64_t threads) {
  TORCH_CHECK_VALUE(estimator == "sampled" || estimator == "conditional" || estimator == "subspace",
                    "estimator must be sampled, conditional or subspace, got ", estimator);
  TORCH_CHECK_VALUE(n_prompts >= 1, "n_prompts must be at least 1, got ", n_prompts);
  TORCH_CHECK_VALUE(first_prompt >= 0 && first_prompt <= (int64_t(1) << 56) - n_prompts,
                    "prompts must lie in [0, 2**56), got first_prompt=", first_prompt, " with n_prompts=", n_prompts);
  TORCH_CHECK_VALUE(step >= 0 && n_steps >= 0 && step <= (int64_t(1) << 32) && n_steps <= (int64_t(1) << 32) - step,
                    "steps must lie in [0, 2**32), got step=", step, ", n_steps=", n_steps);
  TORCH_CHECK_VALUE(threads >= 1, "threads must be at least 1, got ", threads);
}

inline void check_rule(const TrainingSpec& spec, size_t parameters, size_t state) {
  const std::string& name = spec.optimizer;
  TORCH_CHECK_VALUE(name == "flow" || name == "sgd" || name == "adam" || name == "adamw",
                    "optimizer must be flow, sgd, adam or adamw, got ", name);
  TORCH_CHECK_VALUE(spec.momentum >= 0 && spec.momentum < 1, "momentum must lie in [0, 1), got ", spec.momentum);
  const size_t kept = name == "flow" ? 0 : name == "sgd" ? (spec.momentum > 0 ? 1 : 0) : 2;
  TORCH_CHECK_VALUE(state == kept * parameters, name, " keeps ", kept, " tensors for each of ", parameters,
                    " parameters, got ", state);
}

// E of factored parameters, D of combined ones; every tensor checked.
inline int64_t checked_width(const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& state,
                             int64_t tasks, int64_t dim) {
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
                parameters[0].scalar_type(), parameters[0].device());
  }
  return width;
}

inline GroupSpec checked_group(int64_t rank, int64_t world, c10::string_view name, bool tree) {
  TORCH_CHECK_VALUE(rank >= 0 && rank < world, "rank must lie in [0, world), got rank=", rank, ", world=", world);
  TORCH_CHECK_VALUE((world > 1) == !name.empty(), "several processes need the name of their group, one has none, got world=",
                    world, ", group='", name, "'");
  return {.rank = rank, .size = world, .name = std::string(name), .tree = tree};
}

// What train_steps returns: steps done, finite, first loss, first gradient's norm, last loss, flow time, step size, stopped,
// lost.
using StepsDone = std::tuple<int64_t, bool, double, double, double, double, double, bool, std::string>;

// All of flow_step's arguments; returns the task.
inline TaskSpec checked_step(const at::Tensor& kq, const at::Tensor& ov, const at::Tensor& support,
                             const at::Tensor& signal, const std::optional<at::Tensor>& factor,
                             const std::optional<at::Tensor>& atoms, int64_t context_length, double noise_std,
                             bool noisy_target, const std::string& estimator, int64_t n_prompts, int64_t step,
                             int64_t first_prompt, int64_t threads) {
  TORCH_CHECK_VALUE(kq.dim() == 3, "kq must be (heads, dim, dim), got shape ", kq.sizes());
  const TaskSpec task =
      task_spec(support, signal, factor, atoms, kq.size(0), context_length, noise_std, noisy_target);
  check_estimate(estimator, n_prompts, first_prompt, step, 1, threads);
  check_array("kq", kq, {task.heads, task.dim(), task.dim()}, kq.scalar_type(), kq.device());
  check_array("ov", ov, {task.heads, task.tasks, task.dim()}, kq.scalar_type(), kq.device());
  return task;
}

// All of train_steps' arguments; returns the task and what to do with it.
inline std::pair<TaskSpec, TrainingSpec> checked_training(
    const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& state, const at::Tensor& support,
    const at::Tensor& signal, const std::optional<at::Tensor>& factor, const std::optional<at::Tensor>& atoms,
    int64_t context_length, double noise_std, bool noisy_target, c10::string_view estimator, int64_t n_prompts,
    int64_t seed, int64_t step, int64_t n_steps, double scale, c10::string_view optimizer, double learning_rate,
    double step_cap, double momentum, double weight_decay, int64_t threads) {
  TORCH_CHECK_VALUE(support.dim() == 2, "support must be (tasks, covariates), got shape ", support.sizes());
  const int64_t width = checked_width(parameters, state, support.size(0), support.size(0) + support.size(1));
  const TaskSpec task =
      task_spec(support, signal, factor, atoms, parameters[0].size(0), context_length, noise_std, noisy_target);
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
  return {task, spec};
}

}  // namespace mhicl
