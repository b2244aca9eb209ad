// Whole stretches of training without Python: estimate, pull back to the trained parameters, update.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "estimate.h"

namespace mhicl {

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
};

struct Stretch {
  int64_t steps_done = 0;
  bool finite = true;
  double first_loss = 0, first_gradient_norm = 0, last_loss = 0, flow_time = 0, step_size = 0;
};

// The parameters' and the rule's arrays, in the order kq, ov or w_q, w_k, w_v, w_o; updated in place.
template <class T>
struct TrainedArrays {
  std::vector<T*> parameters, first, second;
  std::vector<int64_t> sizes;
};

// Up to n_steps steps from number `step` on, fewer once max_seconds have passed. n_steps = 0 evaluates the loss and the
// gradient and changes nothing. A loss or gradient that is not finite ends the stretch before the update. Throws what
// check_weights throws, at any step.
template <class T>
Stretch train(const TaskSpec& task, const TrainingSpec& spec, const TrainedArrays<T>& arrays, int64_t step,
              int64_t n_steps, double max_seconds, double flow_time, int threads);

}  // namespace mhicl
