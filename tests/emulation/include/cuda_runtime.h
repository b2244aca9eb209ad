// Stand-in for <cuda_runtime.h>: the language's keywords, what kernels call, and typed launches. Sources that use
// __shared__, __constant__ or <<< >>> do not compile.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <tuple>
#include <type_traits>

#include "arithmetic.h"
#include "indices.h"
#include "runtime.h"
#include "warp.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

template <class... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute, int value) {
  return emulation::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <class... Params>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               std::type_identity_t<Params>... arguments) {
  static_assert((std::is_trivially_copyable_v<Params> && ...), "a kernel's arguments are copied to it as bytes");
  static_assert((sizeof(Params) + ... + 0) <= 4096, "a kernel takes 4 KiB of arguments");
  const auto kept = std::make_shared<const std::tuple<Params...>>(arguments...);
  emulation::Launch launch = {reinterpret_cast<const void*>(kernel), config->gridDim, config->blockDim,
                              config->dynamicSmemBytes, {}, [kernel, kept] { std::apply(kernel, *kept); }};
  (launch.add_argument(&arguments, sizeof arguments, alignof(Params)), ...);
  return emulation::submit(config->stream, std::move(launch));
}
