// One configuration of training on the device: its memory, and the launches of a step.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <vector>

#include "../../training_params.h"
#include "progress.h"

namespace mhicl::cuda {

// What is trained, how, and on which prompts. `evaluates`: steps only find losses and gradients.
struct SessionSpec {
  TaskSpec task;
  TrainingSpec training;
  uint64_t first_prompt = 0;
  bool evaluates = false;
  bool tf32 = false;

  bool operator==(const SessionSpec&) const = default;
};

// Trained arrays of a session belong to the caller; it goes by their addresses.
struct SessionTensors {
  std::vector<at::Tensor> parameters, state;
};

class Session {
 public:
  virtual ~Session() = default;

  // All launches of one step: combined weights, estimate, gradients, judgement, update.
  virtual void enqueue_step(cudaStream_t stream) const = 0;

  void begin(int64_t step, double flow_time, cudaStream_t stream) const;
  // Waits for the stream.
  Progress read_progress(cudaStream_t stream) const;
  // In the trained tensors.
  const std::vector<at::Tensor>& gradients() const { return gradients_; }

 protected:
  std::vector<at::Tensor> gradients_;
  Progress* progress_ = nullptr;
};

// On the device of the tensors, which is the current one.
std::unique_ptr<Session> make_session(const SessionSpec& spec, const SessionTensors& tensors);

}  // namespace mhicl::cuda
