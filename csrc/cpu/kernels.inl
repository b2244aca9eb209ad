// Everything that is compiled once for each instruction set. The including file defines MHICL_ISA_NAMESPACE,
// MHICL_VECTOR_BYTES and, for the wide sets, MHICL_ISA_AVX2 or MHICL_ISA_AVX512, and has included all headers.

namespace mhicl::MHICL_ISA_NAMESPACE {
namespace {

#include "vec.inl"

#include "gemm.inl"

#include "softmax.inl"

#include "workspace.inl"

#include "context.inl"

#include "scores.inl"

#include "prompt_moments.inl"

#include "roofs.inl"

#include "sampler.inl"

#include "sampler_prompts.inl"

template <class T>
constexpr AttentionKernels<T> attention_kernels() {
  return {moments_forward<T>, moments_backward<T>, gemm<T>, fma_burst<T>, kLanes<T>};
}

}  // namespace

extern const Kernels table;
const Kernels table = {
    attention_kernels<float>(),
    attention_kernels<double>(),
    sampler_kernels<float>(),
    sampler_kernels<double>(),
    elements<RawWords>,
};

}  // namespace mhicl::MHICL_ISA_NAMESPACE
