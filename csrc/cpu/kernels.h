// The table of CPU kernels: one for each instruction set, all compiled from the same bodies.
#pragma once

#include "../attention_params.h"
#include "../params.h"
#include "../transformer_params.h"
#include "sampler.h"
#include "step/step.h"
#include "training/updates.h"

// Wider instruction sets are compiled by per-region targets, which GCC has on x86-64; elsewhere the portable set runs.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MHICL_X86 1
#endif

namespace mhicl {

template <class T>
struct MatrixKernels {
  Gemm<T> gemm;
  FmaBurst<T> fma_burst;
  int64_t lanes;
};

template <class T>
struct PromptKernels {
  MomentsForward<T> moments_forward;
  MomentsBackward<T> moments_backward;
};

struct Kernels {
  MatrixKernels<float> matrix_f32;
  MatrixKernels<double> matrix_f64;
  PromptKernels<float> prompts_f32;
  PromptKernels<double> prompts_f64;
  AttentionKernels<float> attention_f32;
  AttentionKernels<double> attention_f64;
  SamplerKernels<float> sampler_f32;
  SamplerKernels<double> sampler_f64;
  StreamElements<uint32_t> philox_words;
  StepKernels<float> step_f32;
  StepKernels<double> step_f64;
  UpdateKernels<float> update_f32;
  UpdateKernels<double> update_f64;
  TransformerKernels<float> transformer_f32;
  TransformerKernels<double> transformer_f64;

  template <class T>
  const MatrixKernels<T>& matrix() const;
  template <class T>
  const PromptKernels<T>& prompts() const;
  template <class T>
  const AttentionKernels<T>& attention() const;
  template <class T>
  const SamplerKernels<T>& sampler() const;
  template <class T>
  const StepKernels<T>& step() const;
  template <class T>
  const UpdateKernels<T>& update() const;
  template <class T>
  const TransformerKernels<T>& transformer() const;
};

template <>
inline const MatrixKernels<float>& Kernels::matrix<float>() const {
  return matrix_f32;
}
template <>
inline const MatrixKernels<double>& Kernels::matrix<double>() const {
  return matrix_f64;
}

template <>
inline const PromptKernels<float>& Kernels::prompts<float>() const {
  return prompts_f32;
}
template <>
inline const PromptKernels<double>& Kernels::prompts<double>() const {
  return prompts_f64;
}

template <>
inline const AttentionKernels<float>& Kernels::attention<float>() const {
  return attention_f32;
}
template <>
inline const AttentionKernels<double>& Kernels::attention<double>() const {
  return attention_f64;
}

template <>
inline const SamplerKernels<float>& Kernels::sampler<float>() const {
  return sampler_f32;
}
template <>
inline const SamplerKernels<double>& Kernels::sampler<double>() const {
  return sampler_f64;
}

template <>
inline const StepKernels<float>& Kernels::step<float>() const {
  return step_f32;
}
template <>
inline const StepKernels<double>& Kernels::step<double>() const {
  return step_f64;
}

template <>
inline const UpdateKernels<float>& Kernels::update<float>() const {
  return update_f32;
}
template <>
inline const UpdateKernels<double>& Kernels::update<double>() const {
  return update_f64;
}

template <>
inline const TransformerKernels<float>& Kernels::transformer<float>() const {
  return transformer_f32;
}
template <>
inline const TransformerKernels<double>& Kernels::transformer<double>() const {
  return transformer_f64;
}

namespace portable {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}

// The table of the active instruction set.
const Kernels& kernels();

}  // namespace mhicl
