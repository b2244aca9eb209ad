// Everything that is compiled once for each instruction set. The including file defines MHICL_ISA_NAMESPACE,
// MHICL_VECTOR_BYTES and, for the wide sets, MHICL_ISA_AVX2 or MHICL_ISA_AVX512, and has included all headers.

namespace mhicl::MHICL_ISA_NAMESPACE {
namespace {

#include "vec.inl"

#include "gemm.inl"

#include "softmax.inl"

#include "workspace.inl"

#include "storage.inl"

#include "context.inl"

#include "scores.inl"

#include "prompt_moments.inl"

#include "transpose.inl"

#include "attention/rows.inl"

#include "attention/sight.inl"

#include "attention/products.inl"

#include "attention/weights.inl"

#include "attention/nonfinite.inl"

#include "attention/logits.inl"

#include "attention/key_gradient.inl"

#include "attention/forward.inl"

#include "attention/backward.inl"

#include "attention/few_rows_products.inl"

#include "attention/few_rows.inl"

#include "attention/few_rows_forward.inl"

#include "attention/few_rows_backward.inl"

#include "attention/dispatch.inl"

#include "roofs.inl"

#include "sampler.inl"

#include "sampler_prompts.inl"

#include "step/tiles.inl"

#include "step/tiles_softmax.inl"

#include "step/tiles_fill.inl"

#include "step/common.inl"

#include "step/sampled.inl"

#include "step/residuals.inl"

#include "step/conditional.inl"

#include "step/subspace.inl"

#include "training/updates.inl"

#include "transformer/products.inl"

#include "transformer/pairs.inl"

#include "transformer/heads.inl"

#include "transformer/tape.inl"

#include "transformer/pass.inl"

#include "transformer/transformer.inl"

template <class T>
constexpr MatrixKernels<T> matrix_kernels() {
  return {gemm<T>, fma_burst<T>, kLanes<T>};
}

template <class T>
constexpr PromptKernels<T> prompt_kernels() {
  return {moments_forward<T>, moments_backward<T>};
}

template <class T>
constexpr AttentionKernels<T> attention_kernels() {
  return {forward_blocking<T>, backward_blocking<T>, few_rows_pay<T>, attention_forward<T>, attention_backward<T>};
}

template <class T>
constexpr StepKernels<T> step_kernels() {
  return {{sampled_workspace<T>, sampled_step<T>},
          {conditional_workspace<T>, conditional_step<T>},
          {subspace_workspace<T>, subspace_step<T>}};
}

template <class T>
constexpr UpdateKernels<T> update_kernels() {
  return {descend<T>, descend_with_momentum<T>, adapt_moments<T>, sum_of_squares<T>, add_rows<T>,
          largest_magnitude<T>};
}

template <class T>
constexpr TransformerKernels<T> transformer_kernels() {
  return {transformer_step<T>, transformer_predict<T>};
}

}  // namespace

extern const Kernels table;
const Kernels table = {
    matrix_kernels<float>(),
    matrix_kernels<double>(),
    prompt_kernels<float>(),
    prompt_kernels<double>(),
    attention_kernels<float>(),
    attention_kernels<double>(),
    sampler_kernels<float>(),
    sampler_kernels<double>(),
    elements<RawWords>,
    step_kernels<float>(),
    step_kernels<double>(),
    update_kernels<float>(),
    update_kernels<double>(),
    transformer_kernels<float>(),
    transformer_kernels<double>(),
};

}  // namespace mhicl::MHICL_ISA_NAMESPACE
