// at::parallel_for for the kernels: the same thread pool as torch's own operators, and safe after fork.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include <ATen/Parallel.h>

namespace mhicl {

// Whether this process is a forked child. The OpenMP pool's threads do not survive a fork, and waiting for them hangs.
bool in_forked_child();

// Calls body(i) for every i in [0, n), each once, on torch's threads; on the calling thread in a forked child. Threads
// take the next i when they are free, so one that is slowed down holds nobody up.
template <class Body>
void parallel_for(int64_t n, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    for (int64_t i = next++; i < n; i = next++) body(i);
  };
  const int64_t threads = in_forked_child() ? 1 : std::min<int64_t>(n, at::get_num_threads());
  if (threads <= 1) {
    work(0, 1);
  } else {
    at::parallel_for(0, threads, 1, work);
  }
}

}  // namespace mhicl
