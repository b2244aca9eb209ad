// Sessions that may be asked for again, each with its steps captured as graphs: one call of train_steps is rarely the last of
// a run, and making a session takes as long as some steps do.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "graph.h"
#include "session.h"

namespace mhicl::cuda {

struct CapturedSession {
  // A graph of so many steps takes the host little longer to launch than one of a single step.
  static constexpr int64_t kStepsTogether = 16;

  std::unique_ptr<Session> session;
  std::unique_ptr<Graph> step, steps_together;  // captured when they are first wanted
  double step_seconds = 0;  // as last measured; 0: not yet

  // Enqueues n steps in a row.
  void launch(int64_t n, cudaStream_t stream) {
    if (n >= kStepsTogether) capture_once(steps_together, kStepsTogether);
    if (n % kStepsTogether > 0) capture_once(step, 1);
    for (; n >= kStepsTogether; n -= kStepsTogether) steps_together->launch(stream);
    for (; n > 0; --n) step->launch(stream);
  }

 private:
  void capture_once(std::unique_ptr<Graph>& graph, int64_t steps) {
    if (graph) return;
    graph = std::make_unique<Graph>([&](cudaStream_t stream) {
      for (int64_t i = 0; i < steps; ++i) session->enqueue_step(stream);
    });
  }
};

// What tells sessions apart.
struct SessionKey {
  SessionSpec spec;
  std::vector<void*> arrays;
  at::ScalarType dtype;
  at::Device device;

  bool operator==(const SessionKey&) const = default;
};

// Out of the cache while it is in use, so that two threads never share one; the last few are kept.
std::optional<CapturedSession> take_session(const SessionKey& key);
void keep_session(const SessionKey& key, CapturedSession session);

}  // namespace mhicl::cuda
