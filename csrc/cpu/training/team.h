// Threads of one native run. They are its own, not torch's: made when it starts and joined when it returns, so a run is
// safe after fork, from several Python threads at once, and on one thread while others run on theirs.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace mhicl {

class Team {
 public:
  using Body = std::function<void(int64_t index, int thread)>;

  // The calling thread is thread 0. Throws std::system_error where no more threads can be had.
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return int(others_.size()) + 1; }

  // Calls body(i, thread) for every i in [0, n), each once; threads take the next i when they are free. `body` must not
  // throw.
  void for_each(int64_t n, const Body& body);

 private:
  void stop();
  void serve(int thread);
  void work(int thread);

  std::vector<std::thread> others_;
  const Body* body_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<uint32_t> round_{0};  // a new number starts a round
  std::atomic<uint32_t> done_{0};   // threads, besides the caller, that have finished this round
  bool stopping_ = false;
};

}  // namespace mhicl
