#include "backward_rows_launch.cuh"

namespace mhicl::cuda {
template bool rows_fit_one_block<float>(const BackwardCall<float>&, const DeviceLimits&);
template cudaError_t attention_backward_rows<float>(BackwardCall<float>&, const DeviceLimits&, cudaStream_t);
}  // namespace mhicl::cuda
