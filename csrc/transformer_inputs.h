// What the operators of the transformer demand of their arguments. The Python functions check the same, with the user's
// names; these guard direct calls.
#pragma once

#include <string>

#include "attention_inputs.h"

namespace mhicl {

struct TransformerInputs {
  at::Tensor tokens;  // (N, n + Q, d + 1)
  int64_t queries;
  at::TensorList weights;  // read-in, then q, k, v, o of each layer, then read-out
  at::IntArrayRef heads, head_dims;
  at::ArrayRef<double> scales;
  Activation activation;

  int64_t n_prompts() const { return tokens.size(0); }
  int64_t context_length() const { return tokens.size(1) - queries; }
  int64_t token_dim() const { return tokens.size(2); }
  int64_t width() const { return read_in().size(0); }
  int64_t n_layers() const { return int64_t(heads.size()); }
  int64_t inner(int64_t layer) const { return heads[layer] * head_dims[layer]; }

  const at::Tensor& read_in() const { return weights.front(); }    // (W, d + 1)
  const at::Tensor& read_out() const { return weights.back(); }    // (W)
  const at::Tensor& of_layer(int64_t layer, int64_t which) const { return weights[1 + 4 * layer + which]; }
  const at::Tensor& q(int64_t layer) const { return of_layer(layer, 0); }  // (H·E, W), as k and v
  const at::Tensor& k(int64_t layer) const { return of_layer(layer, 1); }
  const at::Tensor& v(int64_t layer) const { return of_layer(layer, 2); }
  const at::Tensor& o(int64_t layer) const { return of_layer(layer, 3); }  // (W, H·E)
};

inline TransformerInputs transformer_inputs(const at::Tensor& tokens, int64_t queries, at::TensorList weights,
                                            at::IntArrayRef heads, at::IntArrayRef head_dims,
                                            at::ArrayRef<double> scales, const std::string& activation) {
  const TransformerInputs in = {tokens, queries, weights, heads, head_dims, scales, activation_of(activation)};
  TORCH_CHECK_VALUE(in.activation != Activation::relu, "activation must be softmax or linear, got \"", activation, "\"");
  TORCH_CHECK_VALUE(tokens.dim() == 3 && 0 <= queries && queries <= tokens.size(1),
                    "tokens must be (prompts, examples and ", queries, " queries, dim), got shape ", tokens.sizes());
  const at::ScalarType type = tokens.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, "tokens must be float32 or float64, got ", type);
  TORCH_CHECK_VALUE(in.n_layers() > 0 && head_dims.size() == heads.size() && scales.size() == heads.size() &&
                        weights.size() == 4 * heads.size() + 2,
                    "expected heads, head_dims and scales of each layer and 4 weights a layer and 2, got ",
                    heads.size(), ", ", head_dims.size(), ", ", scales.size(), " and ", weights.size());
  TORCH_CHECK_VALUE(in.read_in().dim() == 2, "read_in must be (width, dim), got shape ", in.read_in().sizes());
  check_like("read_in", in.read_in(), {in.width(), in.token_dim()}, type);
  check_like("read_out", in.read_out(), {in.width()}, type);
  for (int64_t i = 0; i < in.n_layers(); ++i) {
    TORCH_CHECK_VALUE(heads[i] >= 0 && head_dims[i] >= 1, "layer ", i, " has ", heads[i], " heads of dim ",
                      head_dims[i]);
    for (const at::Tensor& weight : {in.q(i), in.k(i), in.v(i)}) {
      check_like("q, k and v", weight, {in.inner(i), in.width()}, type);
    }
    check_like("o", in.o(i), {in.width(), in.inner(i)}, type);
  }
  return in;
}

}  // namespace mhicl
