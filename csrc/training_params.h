// What training is told, on any device.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace mhicl {

// The distribution of prompts, and how many heads look at them.
struct TaskSpec {
  int64_t dim_x, tasks, context_length, heads;
  double noise_std;
  bool noisy_target;
  std::vector<double> support;  // (I, d), 0 or 1
  std::vector<double> signal;   // (I)
  std::vector<double> factor;   // (d, d), A of x = A ξ; empty for the identity
  std::vector<int64_t> atoms;   // (d), where gradients are averaged over the task's symmetries; else empty

  int64_t dim() const { return dim_x + tasks; }
  bool operator==(const TaskSpec&) const = default;
};

enum class Parameterisation { combined, factored };

struct TrainingSpec {
  std::string estimator;
  int64_t n_prompts;
  uint64_t seed;
  Parameterisation parameterisation;
  int64_t width;  // E of factored parameters
  double scale;   // KQ_h = scale · W_K,hᵀ W_Q,h
  std::string optimizer;  // "flow", "sgd", "adam" or "adamw"
  double learning_rate, step_cap, momentum, weight_decay;  // step_cap 0: none

  bool operator==(const TrainingSpec&) const = default;
};

// The processes that make the same steps, each from its share of the prompts. `tree`: in the order of one process.
struct GroupSpec {
  int64_t rank = 0, size = 1;
  std::string name;
  bool tree = false;
};

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

struct Stretch {
  int64_t steps_done = 0;
  bool finite = true;
  double first_loss = kUnknown, first_gradient_norm = kUnknown, last_loss = kUnknown, flow_time = 0, step_size = 0;
  bool stopped = false;  // because some process asked
  std::string lost;      // why a message did not get through
};

// Adam's.
inline constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;

// What is wrong with weights that an estimate cannot take.
inline constexpr const char* kNeedsSymmetry =
    "averaging gradients over the task's symmetries needs weights that these leave alone: KQ's covariate block a "
    "multiple of the identity on covariates that the same tasks read, OV's label block diagonal, all else 0";

inline std::string needs_no_label_logits(const std::string& estimator, int64_t d) {
  return "the " + estimator + " estimate needs logits that do not read labels, KQ[:, " + std::to_string(d) + ":, :" +
         std::to_string(d) + "] = 0";
}

}  // namespace mhicl
