#include "team.h"

namespace mhicl {
namespace {

// Waits until `value` is no longer `old`: awake for about as long as a step's serial part takes, since falling asleep and
// waking up costs more than a small step, then asleep, since somebody else may need the core.
void wait_for_change(const std::atomic<uint32_t>& value, uint32_t old) {
  constexpr int patience = 2000;
  for (int i = 0; i < patience; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

Team::Team(int threads) {
  try {
    for (int thread = 1; thread < threads; ++thread) others_.emplace_back([this, thread] { serve(thread); });
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  stopping_ = true;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& other : others_) other.join();
}

void Team::for_each(int64_t n, const Body& body) {
  body_ = &body;
  count_ = n;
  next_.store(0, std::memory_order_relaxed);
  if (others_.empty() || n <= 1) {
    work(0);
    return;
  }
  done_.store(0, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  work(0);
  const auto all = uint32_t(others_.size());
  for (uint32_t done = done_.load(std::memory_order_acquire); done != all; done = done_.load(std::memory_order_acquire)) {
    wait_for_change(done_, done);
  }
}

void Team::work(int thread) {
  for (int64_t i = next_++; i < count_; i = next_++) (*body_)(i, thread);
}

void Team::serve(int thread) {
  for (uint32_t seen = 0;;) {
    wait_for_change(round_, seen);
    ++seen;
    if (stopping_) return;
    work(thread);
    done_.fetch_add(1, std::memory_order_release);
    done_.notify_one();
  }
}

}  // namespace mhicl
