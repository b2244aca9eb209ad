// The sizes of prompt_attention's problem.
#pragma once

#include <ATen/ATen.h>

namespace mhicl {

struct PromptSizes {
  int64_t n, models, heads, outputs, dim;

  PromptSizes(const at::Tensor& query, const at::Tensor& ov)
      : n(query.size(0)), models(ov.size(0)), heads(ov.size(1)), outputs(ov.size(2)), dim(ov.size(3)) {}
  int64_t model_row() const { return heads * dim; }     // one model's moments of one prompt
  int64_t row() const { return models * heads * dim; }  // all models'
};

}  // namespace mhicl
