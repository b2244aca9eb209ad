// at::parallel_for for the kernels: the same thread pool as torch's own operators.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include <ATen/Parallel.h>

namespace mhicl {

// Calls body(i) for every i in [0, n), each once, on torch's threads. Threads take the next i when they are
// free, so one that is slowed down holds nobody up.
template <class Body>
void parallel_for(int64_t n, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    for (int64_t i = next++; i < n; i = next++) body(i);
  };
  const int64_t threads = std::min<int64_t>(n, at::get_num_threads());
  if (threads <= 1) {
    work(0, 1);
  } else {
    at::parallel_for(0, threads, 1, work);
  }
}

}  // namespace mhicl
