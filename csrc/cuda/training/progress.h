// How far a stretch of steps has come, and what a step has found: in device memory, so that steps follow one another without
// the host.
#pragma once

#include "../launchers.h"
#include "symmetry.h"
#include "task.h"

namespace mhicl::cuda {

enum class Rule { flow, sgd, adam };  // adam: with weight decay, AdamW

struct UpdateRule {
  Rule rule;
  double learning_rate, step_cap, momentum, weight_decay;  // step_cap 0: none
};

struct Progress {
  uint32_t step;  // the number of the next step
  bool stopped;   // later steps change nothing
  bool updates;   // the step at hand changes the parameters
  bool finite;    // its loss and its gradient are
  bool labels_in_logits, asymmetric;  // what is wrong with its weights
  int64_t steps_done;
  double first_loss, first_gradient_norm, last_loss, flow_time, step_size;
  double rate, root;  // of the step at hand: what multiplies its direction, and √(1 − β₂ᵗ)
};

cudaError_t begin_stretch(Progress* progress, uint32_t step, double flow_time, cudaStream_t stream);

// Of a share of the gradient's elements: Σ g², max |g|; of a share of what has to be zero in KQ, whether some is not.
struct Measure {
  double squares, largest, labels_in_logits;
};
inline constexpr int64_t most_measures = 256;

// A loss is share · (*step + Σ parts) + constant.
struct LossTerms {
  const double *step, *parts;
  int64_t n_parts;
  double share, constant;
};

template <class T>
struct Judgement {
  TrainedParameters<T> trained;
  const T* blind_kq;  // (H, D, D), where the estimate demands that logits do not read labels; else null
  int64_t heads, dim, dim_x;
  const HeadAsymmetry* asymmetry;  // (H), or null
  LossTerms loss;
  UpdateRule rule;
  bool evaluates;  // only: no update
  Measure* measures;  // room for most_measures
  Progress* progress;
};

// What a step has found -> progress. A loss or gradient that is not finite, and weights that the estimate cannot take, stop
// the stretch before the update.
template <class T>
cudaError_t judge_step(const Judgement<T>& judgement, cudaStream_t stream);

// One update of all parameters by the rule, if the step is to make one.
template <class T>
cudaError_t update_parameters(const TrainedParameters<T>& trained, const UpdateRule& rule, const Progress* progress,
                              cudaStream_t stream);

}  // namespace mhicl::cuda
