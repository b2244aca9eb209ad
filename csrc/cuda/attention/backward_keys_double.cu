#include "backward_keys_launch.cuh"

namespace mhicl::cuda {
template cudaError_t attention_backward_keys<double>(BackwardCall<double>&, const DeviceLimits&, cudaStream_t);
}  // namespace mhicl::cuda
