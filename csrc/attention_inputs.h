// What the entries to general attention do alike on every device: checks, outputs, and the kernels' parameters.
#pragma once

#include <string>
#include <tuple>

#include "attention_params.h"
#include "checks.h"
#include "storage.h"

namespace mhicl {

inline Activation activation_of(const std::string& name) {
  if (name == "softmax") return Activation::softmax;
  if (name == "linear") return Activation::linear;
  if (name == "relu") return Activation::relu;
  TORCH_CHECK_VALUE(false, "activation must be softmax, linear or relu, got \"", name, "\"");
}

struct AttentionInputs {
  at::Tensor query, key, value;
  std::optional<at::Tensor> mask, key_lengths;
  double scale;
  bool causal;
  Activation activation;

  int64_t batch() const { return query.size(0); }
  int64_t heads() const { return query.size(1); }
  int64_t rows() const { return query.size(2); }
  int64_t keys() const { return key.size(2); }
  int64_t problems() const { return batch() * key.size(1); }
  bool empty() const { return batch() * heads() * rows() == 0; }
  bool softmax() const { return activation == Activation::softmax; }

  at::ScalarType compute_type() const { return compute_dtype(query.scalar_type()); }
  at::Tensor by_row(at::ScalarType type) const {
    return at::empty({batch(), heads(), rows()}, query.options().dtype(type));
  }
};

// Values of key_lengths are the kernels' or the caller's to check.
inline AttentionInputs attention_inputs(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                        const std::optional<at::Tensor>& mask,
                                        const std::optional<at::Tensor>& key_lengths, const at::Scalar& scale,
                                        bool causal, const std::string& activation) {
  check_attention(query, key, value, mask, key_lengths);
  std::optional<at::Tensor> lengths;
  if (key_lengths) lengths = key_lengths->contiguous();
  return {query, key, value, mask, lengths, scale.toDouble(), causal, activation_of(activation)};
}

// How memory for large results is come by.
using Empty = at::Tensor (*)(at::IntArrayRef sizes, const at::TensorOptions& options);

// With the sizes of `like` but for the last, and its order in memory: heads may stand inside rows, as where heads are parts
// of a projection's columns. What follows then need not copy.
inline at::Tensor empty_as(const at::Tensor& like, int64_t columns, Empty empty) {
  const int64_t batch = like.size(0), heads = like.size(1), rows = like.size(2);
  const bool heads_inside = like.stride(1) < like.stride(2);
  return heads_inside ? empty({batch, rows, heads, columns}, like.options()).transpose(1, 2)
                      : empty({batch, heads, rows, columns}, like.options());
}

inline Operand<const void*> operand(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

inline Operand<void*> output(const at::Tensor& x) {
  if (!x.defined()) return {};
  return {x.mutable_data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// (batch, heads, rows, keys), each of them full or 1.
inline Operand<const void*> broadcast_operand(const at::Tensor& x) {
  const auto stride = [&](int64_t i) { return x.size(i) == 1 ? 0 : x.stride(i); };
  return {x.const_data_ptr(), stride(0), stride(1), stride(2), stride(3)};
}

template <class T>
AttentionParams<T> attention_params(const AttentionInputs& in, Blocking blocking) {
  const int64_t key_heads = in.key.size(1);
  return {.batch = in.batch(),
          .key_heads = key_heads,
          .group = key_heads == 0 ? 0 : in.heads() / key_heads,
          .rows = in.rows(),
          .keys = in.keys(),
          .dim = in.query.size(3),
          .value_dim = in.value.size(3),
          .storage = storage_of(in.query),
          .query = operand(in.query),
          .key = operand(in.key),
          .value = operand(in.value),
          .mask_kind = !in.mask                               ? MaskKind::none
                       : in.mask->scalar_type() == at::kBool ? MaskKind::boolean
                                                             : MaskKind::additive,
          .mask = in.mask ? broadcast_operand(*in.mask) : Operand<const void*>{},
          .key_lengths = in.key_lengths ? in.key_lengths->const_data_ptr<int64_t>() : nullptr,
          .scale = T(in.scale),
          .causal = in.causal,
          .activation = in.activation,
          .blocking = blocking};
}

struct AttentionOutputs {
  at::Tensor out, lse, weights, stats;
};

inline AttentionOutputs attention_outputs(const AttentionInputs& in, bool want_lse, bool want_weights, Empty empty) {
  TORCH_CHECK_VALUE(in.softmax() || !want_lse, "only the softmax has a log-sum-exp");
  const auto options = in.query.options(), in_compute_type = options.dtype(in.compute_type());
  return {empty_as(in.query, in.value.size(3), empty),
          want_lse ? in.by_row(in.compute_type()) : at::empty({0}, in_compute_type),
          want_weights ? empty({in.batch(), in.heads(), in.rows(), in.keys()}, options) : at::empty({0}, options),
          in.softmax() ? at::empty({2, in.batch(), in.heads(), in.rows()}, in_compute_type)
                       : at::empty({0}, in_compute_type)};
}

template <class T>
AttentionForwardParams<T> forward_params(const AttentionInputs& in, const AttentionOutputs& out, Blocking blocking) {
  const auto pointer = [](const at::Tensor& x) { return x.numel() == 0 ? nullptr : x.mutable_data_ptr<T>(); };
  T* const stats = pointer(out.stats);
  return {.attention = attention_params<T>(in, blocking),
          .out = output(out.out),
          .maxima = stats,
          .sums = stats == nullptr ? nullptr : stats + out.stats.numel() / 2,
          .lse = pointer(out.lse),
          .weights = out.weights.numel() == 0 ? nullptr : out.weights.mutable_data_ptr()};
}

struct AttentionCotangents {
  at::Tensor out;
  std::optional<at::Tensor> lse, weights;
  at::Tensor stats;  // the forward pass's
};

inline AttentionCotangents attention_cotangents(const AttentionInputs& in, const at::Tensor& grad_out,
                                                const std::optional<at::Tensor>& grad_lse,
                                                const std::optional<at::Tensor>& grad_weights,
                                                const at::Tensor& stats) {
  const int64_t batch = in.batch(), heads = in.heads(), rows = in.rows();
  check_like("grad_out", grad_out, {batch, heads, rows, in.value.size(3)}, in.query.scalar_type());
  if (grad_lse) check_like("grad_lse", *grad_lse, {batch, heads, rows}, in.compute_type());
  if (grad_weights) check_like("grad_weights", *grad_weights, {batch, heads, rows, in.keys()}, in.query.scalar_type());
  if (in.softmax()) check_like("stats", stats, {2, batch, heads, rows}, in.compute_type());
  std::optional<at::Tensor> lse;
  if (grad_lse) lse = grad_lse->contiguous();
  return {grad_out, lse, grad_weights, stats.contiguous()};
}

// The gradients of query, key, value and of the logits, or undefined.
using AttentionGradients = std::array<at::Tensor, 4>;

inline AttentionGradients attention_gradients(const AttentionInputs& in, std::array<bool, 4> needs, Empty empty) {
  TORCH_CHECK_VALUE(!needs[3] || (in.mask && in.mask->is_floating_point()),
                    "only an additive attn_mask has a gradient");
  AttentionGradients gradients;
  const std::array<at::Tensor, 3> inputs = {in.query, in.key, in.value};
  for (int i = 0; i < 3; ++i) {
    if (!needs[i]) continue;
    gradients[i] = empty_as(inputs[i], inputs[i].size(3), empty);
    if (in.empty()) gradients[i].zero_();
  }
  if (needs[3]) {
    const auto options = in.query.options().dtype(in.compute_type());
    gradients[3] = at::zeros({in.batch(), in.heads(), in.rows(), in.keys()}, options);
  }
  return gradients;
}

template <class T>
AttentionBackwardParams<T> backward_params(const AttentionInputs& in, const AttentionCotangents& grad,
                                           const AttentionGradients& gradients, Blocking blocking) {
  const T* const maxima = in.softmax() ? grad.stats.const_data_ptr<T>() : nullptr;
  return {.attention = attention_params<T>(in, blocking),
          .grad_out = operand(grad.out),
          .grad_weights = grad.weights ? operand(*grad.weights) : Operand<const void*>{},
          .grad_lse = grad.lse ? grad.lse->const_data_ptr<T>() : nullptr,
          .maxima = maxima,
          .sums = maxima == nullptr ? nullptr : maxima + grad.stats.numel() / 2,
          .grad_query = output(gradients[0]),
          .grad_key = output(gradients[1]),
          .grad_value = output(gradients[2]),
          .grad_logits = gradients[3].defined() ? gradients[3].mutable_data_ptr<T>() : nullptr,
          .means = nullptr,
          .known_means = nullptr};
}

// As the operator returns them: sum_to(logits' gradient, mask's sizes) for the mask's, and empty where not asked for.
inline std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> as_returned(
    const AttentionInputs& in, AttentionGradients gradients, at::Tensor (*sum_to)(const at::Tensor&, at::IntArrayRef)) {
  if (gradients[3].defined()) {
    gradients[3] = sum_to(gradients[3], in.mask->sizes()).to(in.mask->scalar_type());
  }
  for (at::Tensor& gradient : gradients) {
    if (!gradient.defined()) gradient = at::empty({0}, in.query.options());
  }
  return {gradients[0], gradients[1], gradients[2], gradients[3]};
}

}  // namespace mhicl
