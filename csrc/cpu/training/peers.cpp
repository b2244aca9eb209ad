#include "peers.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

namespace mhicl {
namespace {

// What a network carries while one message is on its way: at least some 60 us at 1 GB/s.
constexpr int64_t kBytesOnTheWay = int64_t(1) << 16;

// Whether to gather all processes' bytes and add them up here. gloo's ring then makes P − 1 hops with all of them each, in an
// all-reduce 2 (P − 1) hops with a P-th each: more bytes by the factor P / 2, so never more for two processes.
bool gathers(int64_t processes, int64_t bytes) { return bytes * (processes - 2) <= kBytesOnTheWay * processes; }

c10::OperatorHandle collective(const char* name) {
  const auto found = c10::Dispatcher::singleton().findSchema({std::string("_c10d_functional::") + name, ""});
  TORCH_CHECK(found.has_value(), "training on several processes needs a PyTorch with torch.distributed, which has the "
              "operator _c10d_functional::", name, "; this one was built without it");
  return *found;
}

// Boxed: the group's name is a str to some versions of PyTorch, anything to others.
at::Tensor called(const char* name, torch::jit::Stack arguments) {
  collective(name).callBoxed(arguments);
  return std::move(arguments.at(0)).toTensor();
}

// Starts a collective and waits for it: the next step cannot begin without its result.
at::Tensor completed(const char* name, torch::jit::Stack arguments) {
  try {
    return called("wait_tensor", {called(name, std::move(arguments))});
  } catch (const c10::Error& error) {
    throw PeersLost(error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw PeersLost(error.what());
  }
}

}  // namespace

Peers::Peers(GroupSpec group) : group_(std::move(group)) {
  if (group_.size == 1) return;
  for (const char* name : {"all_reduce_", "all_gather_into_tensor", "wait_tensor"}) collective(name);
}

double* Peers::sent(const std::vector<double>& values) {
  const auto count = int64_t(values.size());
  if (!message_.defined() || message_.numel() != count) message_ = at::empty({count}, at::kDouble);
  double* begin = message_.mutable_data_ptr<double>();
  std::copy(values.begin(), values.end(), begin);
  return begin;
}

void Peers::all_reduce(std::vector<double>& values) {
  if (group_.size == 1) return;
  if (gathers(group_.size, int64_t(values.size() * sizeof(double)))) {
    const double* from = all_gather(values);
    std::fill(values.begin(), values.end(), 0.0);
    for (int64_t rank = 0; rank < group_.size; ++rank) {
      for (double& value : values) value += *from++;
    }
    return;
  }
  const double* begin = sent(values);
  completed("all_reduce_", {message_, "sum", group_.name});
  std::copy_n(begin, values.size(), values.begin());
}

double* Peers::all_gather(const std::vector<double>& values) {
  sent(values);
  gathered_ = completed("all_gather_into_tensor", {message_, group_.size, group_.name});
  return gathered_.mutable_data_ptr<double>();
}

}  // namespace mhicl
