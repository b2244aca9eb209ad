// The operators of the fused step and of training on the GPU: check, then let steps follow one another without the host.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <tuple>
#include <vector>

#include "../../training_checks.h"
#include "../binding.h"
#include "sessions.h"

namespace mhicl::cuda {
namespace {

void check_estimator(const std::string& estimator) {
  TORCH_CHECK_VALUE(estimator != "subspace",
                    "the subspace estimate has no CUDA kernel: use estimator='conditional', or run on the CPU");
}

// Of weights that the estimate cannot take, as the CPU's check_weights has it.
void check_weights(const Progress& progress, const SessionSpec& spec) {
  TORCH_CHECK_VALUE(!progress.asymmetric, kNeedsSymmetry);
  TORCH_CHECK_VALUE(!progress.labels_in_logits, needs_no_label_logits(spec.training.estimator, spec.task.dim_x));
}

// The loss comes as a number, for which the host waits; the gradients stay where the weights are.
std::tuple<double, at::Tensor, at::Tensor> flow_step(const at::Tensor& kq, const at::Tensor& ov,
                                                     const at::Tensor& support, const at::Tensor& signal,
                                                     const std::optional<at::Tensor>& covariance_factor,
                                                     const std::optional<at::Tensor>& atoms, int64_t context_length,
                                                     double noise_std, bool noisy_target,
                                                     c10::string_view estimator, int64_t n_prompts, int64_t seed,
                                                     int64_t step, int64_t first_prompt, int64_t threads) {
  SessionSpec spec = {.task = checked_step(kq, ov, support, signal, covariance_factor, atoms, context_length, noise_std,
                                           noisy_target, std::string(estimator), n_prompts, step, first_prompt, threads),
                      .training = {},
                      .first_prompt = uint64_t(first_prompt),
                      .evaluates = true,
                      .tf32 = tf32_allowed()};
  spec.training.estimator = std::string(estimator);
  spec.training.n_prompts = n_prompts;
  spec.training.seed = uint64_t(seed);
  check_estimator(spec.training.estimator);
  const Place place(kq);
  const std::unique_ptr<Session> session = make_session(spec, {.parameters = {kq, ov}, .state = {}});
  session->begin(step, 0, place.stream());
  session->enqueue_step(place.stream());
  const Progress progress = session->read_progress(place.stream());
  check_weights(progress, spec);
  return {progress.last_loss, session->gradients()[0], session->gradients()[1]};
}

SessionKey key_of(const SessionSpec& spec, const SessionTensors& tensors) {
  SessionKey key = {.spec = spec,
                    .arrays = {},
                    .dtype = tensors.parameters[0].scalar_type(),
                    .device = tensors.parameters[0].device()};
  for (const auto* group : {&tensors.parameters, &tensors.state}) {
    for (const at::Tensor& tensor : *group) key.arrays.push_back(tensor.mutable_data_ptr());
  }
  return key;
}

// How many of the steps fit into that time, by what one took before. Nobody knows at first: one.
int64_t affordable_steps(double step_seconds, int64_t n_steps, double seconds) {
  if (std::isinf(seconds)) return n_steps;
  if (step_seconds == 0) return 1;
  return std::max<int64_t>(1, int64_t(std::min(double(n_steps), seconds / step_seconds)));
}

// Steps in rows that the host enqueues without a wait, as graphs of many steps and of one. How long a row may be for the time
// is told from the row before, of this call or the last; one row is the rule, a second follows where the first took
// less than half of the time. What stops a stretch is seen at the end of a row.
Progress run_steps(CapturedSession& captured, int64_t n_steps, double max_seconds, cudaStream_t stream) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  double spent = 0;
  Progress progress;
  do {
    const int64_t row = affordable_steps(captured.step_seconds, n_steps, max_seconds - spent);
    captured.launch(row, stream);
    progress = captured.session->read_progress(stream);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    captured.step_seconds = (seconds - spent) / double(row);
    spent = seconds;
    n_steps -= row;
  } while (n_steps > 0 && !progress.stopped && spent < max_seconds / 2);
  return progress;
}

Progress train(const SessionSpec& spec, const SessionTensors& tensors, int64_t step, int64_t n_steps, double max_seconds,
               double flow_time, cudaStream_t stream) {
  const SessionKey key = key_of(spec, tensors);
  std::optional<CapturedSession> found = take_session(key);
  CapturedSession captured;
  if (found) captured = std::move(*found);
  if (!captured.session) captured.session = make_session(spec, tensors);
  captured.session->begin(step, flow_time, stream);
  const Progress progress = run_steps(captured, n_steps, max_seconds, stream);
  keep_session(key, std::move(captured));
  return progress;
}

Progress evaluate(const SessionSpec& spec, const SessionTensors& tensors, int64_t step, double flow_time,
                  cudaStream_t stream) {
  const std::unique_ptr<Session> session = make_session(spec, tensors);
  session->begin(step, flow_time, stream);
  session->enqueue_step(stream);
  return session->read_progress(stream);
}

StepsDone train_steps(
    const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& state, const at::Tensor& support,
    const at::Tensor& signal, const std::optional<at::Tensor>& covariance_factor, const std::optional<at::Tensor>& atoms,
    int64_t context_length, double noise_std, bool noisy_target, c10::string_view estimator, int64_t n_prompts,
    int64_t seed, int64_t step, int64_t n_steps, double max_seconds, double scale, c10::string_view optimizer,
    double learning_rate, double step_cap, double momentum, double weight_decay, double flow_time, int64_t threads,
    int64_t rank, int64_t world, c10::string_view group, bool tree, bool stop) {
  auto [task, training] =
      checked_training(parameters, state, support, signal, covariance_factor, atoms, context_length, noise_std,
                       noisy_target, estimator, n_prompts, seed, step, n_steps, scale, optimizer, learning_rate, step_cap,
                       momentum, weight_decay, threads);
  TORCH_CHECK_VALUE(checked_group(rank, world, group, tree).size == 1,
                    "train_steps on a GPU takes one process: runs of several go through flow_step, step by step");
  if (stop) n_steps = std::min<int64_t>(n_steps, 1);
  const SessionSpec spec = {.task = std::move(task),
                            .training = std::move(training),
                            .first_prompt = 0,
                            .evaluates = n_steps == 0,
                            .tf32 = tf32_allowed()};
  check_estimator(spec.training.estimator);
  const Place place(parameters[0]);
  const SessionTensors tensors = {.parameters = parameters, .state = state};
  const Progress p = n_steps == 0 ? evaluate(spec, tensors, step, flow_time, place.stream())
                                  : train(spec, tensors, step, n_steps, max_seconds, flow_time, place.stream());
  if (p.finite) check_weights(p, spec);
  return {p.steps_done, p.finite, p.first_loss, p.first_gradient_norm, p.last_loss, p.flow_time, p.step_size, stop, ""};
}

}  // namespace
}  // namespace mhicl::cuda

MHICL_GPU_OPERATORS(m) {
  m.impl("flow_step", mhicl::cuda::flow_step);
  m.impl("train_steps", mhicl::cuda::train_steps);
}
