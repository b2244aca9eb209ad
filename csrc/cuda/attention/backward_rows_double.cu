#include "backward_rows_launch.cuh"

namespace mhicl::cuda {
template bool rows_fit_one_block<double>(const BackwardCall<double>&, const DeviceLimits&);
template cudaError_t attention_backward_rows<double>(BackwardCall<double>&, const DeviceLimits&, cudaStream_t);
}  // namespace mhicl::cuda
