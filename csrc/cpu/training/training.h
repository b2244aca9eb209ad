// Whole stretches of training without Python: estimate, pull back to the trained parameters, update.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "estimate.h"

namespace mhicl {

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
