#include "backward_keys_launch.cuh"

namespace mhicl::cuda {
template cudaError_t attention_backward_keys<float>(BackwardCall<float>&, const DeviceLimits&, cudaStream_t);
}  // namespace mhicl::cuda
