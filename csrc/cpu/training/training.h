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
//
// All processes of the group make the same steps, with one message each, an evaluation's included; when each of them ends
// its stretch is its own affair. `stop` asks all of them to end after the next step, which is the same for all. A message that
// does not get through ends the stretch before the update, with the reason in `lost`.
template <class T>
Stretch train(const TaskSpec& task, const TrainingSpec& spec, const GroupSpec& group, const TrainedArrays<T>& arrays,
              int64_t step, int64_t n_steps, double max_seconds, double flow_time, int threads, bool stop);

}  // namespace mhicl
