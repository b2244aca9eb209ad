#include "moments.h"

#include <algorithm>

#include "moments.cuh"
#include "variants.h"

namespace mhicl::cuda {
namespace {

template <class T>
AttendDemand demand_of(const GivenPrompts<T>& p, int heads_at_once, bool overlaps, bool own_products) {
  return {.context_length = p.context_length,
          .rows = p.dim,
          .heads = p.heads,
          .heads_at_once = heads_at_once,
          .all_weights = overlaps,
          .own_products = own_products,
          .extra = 2 * heads_at_once * p.dim + (overlaps ? p.heads * p.heads : 0),
          .element_size = int(sizeof(T))};
}

template <class T>
AttendDemand demand_of(const MomentsCall<T>& call, int heads_at_once) {
  return demand_of(call.prompts, heads_at_once, call.overlaps != nullptr, call.directions > 0);
}

template <class T>
AttendDemand demand_of(const MomentsGradientCall<T>& call, int heads_at_once) {
  return demand_of(call.prompts, heads_at_once, call.overlap_weights != nullptr, true);
}

template <class T, class Call>
bool fits(const Call& call, const DeviceLimits& limits) {
  return with_variant<T>(call.prompts.heads, call.prompts.tf32, [&](auto variant) {
    AttendLayout layout;
    return make_layout(demand_of(call, variant.heads), limits, layout);
  });
}

template <class Call>
cudaError_t run(void (*kernel)(Call, AttendLayout), const Call& call, int heads_at_once, const DeviceLimits& limits,
                cudaStream_t stream) {
  const auto& p = call.prompts;
  if (p.n_prompts == 0 || p.heads == 0 || p.dim == 0) return cudaSuccess;
  AttendLayout layout;
  if (!make_layout(demand_of(call, heads_at_once), limits, layout)) return cudaErrorInvalidValue;
  const int64_t blocks = std::min<int64_t>(p.n_prompts, (int64_t(1) << 31) - 1);
  return launch(kernel, dim3(unsigned(blocks)), dim3(layout.warps * kWarp), layout.bytes, stream, call, layout);
}

}  // namespace

template <class T>
bool moments_fit(const MomentsCall<T>& call, const DeviceLimits& limits) {
  return fits<T>(call, limits);
}

template <class T>
bool moments_gradient_fits(const MomentsGradientCall<T>& call, const DeviceLimits& limits) {
  return fits<T>(call, limits);
}

template <class T>
cudaError_t moments(const MomentsCall<T>& call, const DeviceLimits& limits, cudaStream_t stream) {
  return with_variant<T>(call.prompts.heads, call.prompts.tf32, [&](auto variant) {
    return run(moments_kernel<T, variant.heads, variant.tf32>, call, variant.heads, limits, stream);
  });
}

template <class T>
cudaError_t moments_gradient(const MomentsGradientCall<T>& call, const DeviceLimits& limits, cudaStream_t stream) {
  return with_variant<T>(call.prompts.heads, call.prompts.tf32, [&](auto variant) {
    return run(moments_gradient_kernel<T, variant.heads, variant.tf32>, call, variant.heads, limits, stream);
  });
}

template bool moments_fit(const MomentsCall<float>&, const DeviceLimits&);
template bool moments_fit(const MomentsCall<double>&, const DeviceLimits&);
template bool moments_gradient_fits(const MomentsGradientCall<float>&, const DeviceLimits&);
template bool moments_gradient_fits(const MomentsGradientCall<double>&, const DeviceLimits&);
template cudaError_t moments(const MomentsCall<float>&, const DeviceLimits&, cudaStream_t);
template cudaError_t moments(const MomentsCall<double>&, const DeviceLimits&, cudaStream_t);
template cudaError_t moments_gradient(const MomentsGradientCall<float>&, const DeviceLimits&, cudaStream_t);
template cudaError_t moments_gradient(const MomentsGradientCall<double>&, const DeviceLimits&, cudaStream_t);

}  // namespace mhicl::cuda
