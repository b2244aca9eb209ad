#include <array>
#include <atomic>

#include <torch/library.h>

#include "kernels.h"
#include "parallel.h"

namespace mhicl {
namespace {

template <class T>
double burst_on_all_threads(int64_t rounds) {
  std::atomic<double> operations{0};
  parallel_for(at::get_num_threads(), [&](int64_t) {
    alignas(64) std::array<T, 64> sink;
    operations += kernels().matrix<T>().fma_burst(rounds, sink.data());
  });
  return operations;
}

double fma_burst(int64_t rounds, bool double_precision) {
  TORCH_CHECK_VALUE(rounds >= 0, "rounds must not be negative, got ", rounds);
  return double_precision ? burst_on_all_threads<double>(rounds) : burst_on_all_threads<float>(rounds);
}

}  // namespace
}  // namespace mhicl

TORCH_LIBRARY_IMPL(mhicl, CompositeExplicitAutograd, m) { m.impl("fma_burst", mhicl::fma_burst); }
