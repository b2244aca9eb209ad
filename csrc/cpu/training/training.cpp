#include "training.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "../kernels.h"
#include "parameters.h"
#include "updates.h"

namespace mhicl {
namespace {

template <class T>
double gradient_norm(const std::vector<std::vector<T>>& gradients) {
  double squares = 0;
  for (const auto& gradient : gradients) {
    squares += kernels().update<T>().sum_of_squares(gradient.data(), int64_t(gradient.size()));
  }
  return std::sqrt(squares);
}

// The learning rate, or less where it would change a parameter by more than the cap.
template <class T>
double flow_step(const TrainingSpec& spec, const std::vector<std::vector<T>>& gradients) {
  if (spec.step_cap <= 0) return spec.learning_rate;
  double largest = 0;
  for (const auto& gradient : gradients) {
    largest = std::max(largest, double(kernels().update<T>().largest_magnitude(gradient.data(), int64_t(gradient.size()))));
  }
  return largest * spec.learning_rate > spec.step_cap ? spec.step_cap / largest : spec.learning_rate;
}

// One update of all parameters by the rule; returns its length in flow time. Steps count from 0.
template <class T>
double update(const TrainingSpec& spec, int64_t step, const std::vector<std::vector<T>>& gradients,
              const TrainedArrays<T>& arrays) {
  const UpdateKernels<T>& kernel = kernels().update<T>();
  const bool adaptive = spec.optimizer == "adam" || spec.optimizer == "adamw";
  const double flow_time = spec.optimizer == "flow" ? flow_step(spec, gradients)
                           : spec.optimizer == "sgd" ? spec.learning_rate / (1 - spec.momentum)
                                                     : spec.learning_rate;
  const double count = double(step) + 1;
  for (size_t i = 0; i < gradients.size(); ++i) {
    UpdateParams<T> u = {.count = arrays.sizes[i],
                         .parameter = arrays.parameters[i],
                         .gradient = gradients[i].data(),
                         .first = arrays.first.empty() ? nullptr : arrays.first[i],
                         .second = arrays.second.empty() ? nullptr : arrays.second[i],
                         .step = T(spec.optimizer == "flow" ? flow_time : spec.learning_rate),
                         .momentum = T(spec.momentum),
                         .beta1 = kBeta1,
                         .beta2 = kBeta2,
                         .root = T(1),
                         .epsilon = T(kEpsilon),
                         .kept = T(1)};
    if (adaptive) {
      u.step = T(spec.learning_rate / (1 - std::pow(kBeta1, count)));
      u.root = T(std::sqrt(1 - std::pow(kBeta2, count)));
      if (spec.optimizer == "adamw") u.kept = T(1 - spec.learning_rate * spec.weight_decay);
      kernel.adapt_moments(u);
    } else if (u.first != nullptr) {
      kernel.descend_with_momentum(u);
    } else {
      kernel.descend(u);
    }
  }
  return flow_time;
}

}  // namespace

template <class T>
Stretch train(const TaskSpec& task, const TrainingSpec& spec, const GroupSpec& group, const TrainedArrays<T>& arrays,
              int64_t step, int64_t n_steps, double max_seconds, double flow_time, int threads, bool stop) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(max_seconds);
  const std::unique_ptr<Estimate<T>> estimate = make_estimate<T>(spec.estimator, task, spec.n_prompts);
  Parameters<T> parameters(task, spec, arrays);
  Weights<T> weights(task), gradient(task);
  Peers peers(group);
  Team team(useful_threads(group, spec.n_prompts, threads));
  Stretch out;
  out.flow_time = flow_time;
  do {
    parameters.combine(weights);
    const auto number = uint32_t(step + out.steps_done);
    out.stopped = stop;
    try {
      out.last_loss = (*estimate)(weights, {spec.seed, number, 0}, team, peers, out.stopped, gradient);
    } catch (const PeersLost& error) {
      out.stopped = false;
      out.lost = error.what();
      break;
    }
    parameters.pull_back(gradient);
    const double norm = gradient_norm(parameters.gradients());
    if (out.steps_done == 0) {
      out.first_loss = out.last_loss;
      out.first_gradient_norm = norm;
    }
    out.finite = std::isfinite(out.last_loss) && std::isfinite(norm);
    if (out.finite) check_weights(spec.estimator, task, weights);  // factored ones may leave what it demands on the way
    if (!out.finite || n_steps == 0) break;
    out.step_size = update(spec, number, parameters.gradients(), arrays);
    out.flow_time += out.step_size;
    ++out.steps_done;
  } while (out.steps_done < n_steps && !out.stopped && Clock::now() < end);
  return out;
}

template Stretch train<float>(const TaskSpec&, const TrainingSpec&, const GroupSpec&, const TrainedArrays<float>&, int64_t,
                              int64_t, double, double, int, bool);
template Stretch train<double>(const TaskSpec&, const TrainingSpec&, const GroupSpec&, const TrainedArrays<double>&,
                               int64_t, int64_t, double, double, int, bool);

}  // namespace mhicl
