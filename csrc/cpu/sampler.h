// The table of the sampling kernels.
#pragma once

#include "../sampler_params.h"

namespace mhicl {

// Elements first, …, first + count − 1 of a stream.
template <class Value>
using StreamElements = void (*)(Value* out, int64_t count, const philox::Stream& stream, int64_t first);

// Prompts [begin, end).
template <class T>
struct SamplerKernels {
  void (*multi_task)(const MultiTaskParams<T>&, int64_t begin, int64_t end);
  void (*covariates)(const CovariatesParams<T>&, int64_t begin, int64_t end);
  StreamElements<T> normals;
};

}  // namespace mhicl
