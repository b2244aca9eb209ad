#include "forward_launch.cuh"

namespace mhicl::cuda {
template cudaError_t attention_forward(const AttentionForwardParams<double>&, bool, const DeviceLimits&, cudaStream_t);
}  // namespace mhicl::cuda
