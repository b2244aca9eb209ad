// The processes that make the same steps, and the messages between them: torch.distributed's collectives, which are asked
// for by name, so that neither its headers nor its library are needed.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../training_params.h"

namespace mhicl {

// A message did not get through: some process has died, or has not answered in the time that the group allows.
struct PeersLost : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A process by itself sends nothing. Both messages throw PeersLost.
class Peers {
 public:
  // Throws c10::Error where this PyTorch was built without torch.distributed.
  explicit Peers(GroupSpec group);

  const GroupSpec& group() const { return group_; }

  // Σ over the processes, in place; the same bits on each.
  void all_reduce(std::vector<double>& values);
  // (processes, values), in order of rank; overwritten by the next message.
  double* all_gather(const std::vector<double>& values);

 private:
  double* sent(const std::vector<double>& values);

  GroupSpec group_;
  // The engine shares their ownership, since after a time-out it may write into them still.
  at::Tensor message_, gathered_;
};

}  // namespace mhicl
