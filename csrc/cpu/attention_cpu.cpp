// General attention: checks, outputs, and the shares of the threads.

#include <torch/library.h>

#include "../checks.h"
#include "fresh.h"
#include "kernels.h"
#include "parallel.h"
#include "storage.h"

namespace mhicl {
namespace {

Activation activation_of(const std::string& name) {
  if (name == "softmax") return Activation::softmax;
  if (name == "linear") return Activation::linear;
  if (name == "relu") return Activation::relu;
  TORCH_CHECK_VALUE(false, "activation must be softmax, linear or relu, got \"", name, "\"");
}

struct Inputs {
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

Operand<const void*> operand(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

Operand<void*> output(at::Tensor& x) {
  if (!x.defined()) return {};
  return {x.mutable_data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// With the sizes of `like` but for the last, and its order in memory: heads may stand inside rows, as where heads are parts
// of a projection's columns. What follows then need not copy.
at::Tensor fresh_as(const at::Tensor& like, int64_t columns) {
  const int64_t batch = like.size(0), heads = like.size(1), rows = like.size(2);
  const bool heads_inside = like.stride(1) < like.stride(2);
  return heads_inside ? fresh({batch, rows, heads, columns}, like.options()).transpose(1, 2)
                      : fresh({batch, heads, rows, columns}, like.options());
}

// (batch, heads, rows, keys), each of them full or 1.
Operand<const void*> broadcast_operand(const at::Tensor& x) {
  const auto stride = [&](int64_t i) { return x.size(i) == 1 ? 0 : x.stride(i); };
  return {x.const_data_ptr(), stride(0), stride(1), stride(2), stride(3)};
}

template <class T>
AttentionParams<T> attention_params(const Inputs& in, Blocking blocking) {
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

// Shares for the threads: problems and, where there are few, parts of their blocks of rows or of keys. What is computed
// does not depend on the cuts.
enum class Cut { rows, keys, none };

template <class Kernel, class Params>
void run_shares(const Kernel& kernel, const Params& params, Cut cut) {
  const auto& p = params.attention;
  const int64_t rows = blocks_of(p.group * p.rows, p.blocking.rows), keys = blocks_of(p.keys, p.blocking.keys);
  const int64_t problems = p.batch * p.key_heads, threads = at::get_num_threads();
  const int64_t slices = std::min<int64_t>(problems, 8 * threads);
  const int64_t most = std::max<int64_t>(1, cut == Cut::rows ? rows : cut == Cut::keys ? keys : 1);
  const int64_t parts = std::clamp<int64_t>((4 * threads + slices - 1) / slices, 1, most);
  parallel_for(slices * parts, [&](int64_t i) {
    const int64_t slice = i / parts, part = i % parts;
    AttentionRange range = {problems * slice / slices, problems * (slice + 1) / slices, 0, rows, 0, keys};
    if (cut == Cut::rows) {
      range.first_rows = rows * part / parts;
      range.last_rows = rows * (part + 1) / parts;
    } else if (cut == Cut::keys) {
      range.first_keys = keys * part / parts;
      range.last_keys = keys * (part + 1) / parts;
    }
    kernel(params, range);
  });
}

struct Outputs {
  at::Tensor out, lse, weights, stats;
};

template <class T>
void run_forward(const Inputs& in, Outputs& out) {
  const auto pointer = [](at::Tensor& x) { return x.numel() == 0 ? nullptr : x.mutable_data_ptr<T>(); };
  T* const stats = pointer(out.stats);
  const AttentionKernels<T>& kernel = kernels().attention<T>();
  const AttentionForwardParams<T> params = {
      .attention = attention_params<T>(in, kernel.forward_blocking(in.keys())),
      .out = output(out.out),
      .maxima = stats,
      .sums = stats == nullptr ? nullptr : stats + out.stats.numel() / 2,
      .lse = pointer(out.lse),
      .weights = out.weights.numel() == 0 ? nullptr : out.weights.mutable_data_ptr()};
  run_shares(kernel.forward, params, kernel.few_rows_pay(params.attention) ? Cut::none : Cut::rows);
}

Outputs forward(const Inputs& in, bool want_lse, bool want_weights) {
  TORCH_CHECK_VALUE(in.softmax() || !want_lse, "only the softmax has a log-sum-exp");
  const auto type = in.compute_type();
  const auto options = in.query.options();
  Outputs out = {fresh_as(in.query, in.value.size(3)),
                 want_lse ? in.by_row(type) : at::empty({0}, options.dtype(type)),
                 want_weights ? fresh({in.batch(), in.heads(), in.rows(), in.keys()}, options)
                              : at::empty({0}, options),
                 in.softmax() ? at::empty({2, in.batch(), in.heads(), in.rows()}, options.dtype(type))
                              : at::empty({0}, options.dtype(type))};
  if (!in.empty()) (type == at::kDouble ? run_forward<double> : run_forward<float>)(in, out);
  return out;
}

struct Cotangents {
  at::Tensor out;
  std::optional<at::Tensor> lse, weights;
};

// The gradients of query, key, value and of the logits, or undefined.
using Gradients = std::array<at::Tensor, 4>;

template <class T>
void run_backward(const Inputs& in, const Cotangents& grad, const at::Tensor& stats, Gradients& gradients) {
  const T* const maxima = in.softmax() ? stats.const_data_ptr<T>() : nullptr;
  const AttentionKernels<T>& kernels_of_type = kernels().attention<T>();
  const auto& kernel = kernels_of_type.backward;
  const AttentionBackwardParams<T> params = {
      .attention = attention_params<T>(in, kernels_of_type.backward_blocking(in.keys())),
      .grad_out = operand(grad.out),
      .grad_weights = grad.weights ? operand(*grad.weights) : Operand<const void*>{},
      .grad_lse = grad.lse ? grad.lse->const_data_ptr<T>() : nullptr,
      .maxima = maxima,
      .sums = maxima == nullptr ? nullptr : maxima + stats.numel() / 2,
      .grad_query = output(gradients[0]),
      .grad_key = output(gradients[1]),
      .grad_value = output(gradients[2]),
      .grad_logits = gradients[3].defined() ? gradients[3].mutable_data_ptr<T>() : nullptr,
      .means = nullptr,
      .known_means = nullptr};
  if (in.problems() >= 4 * at::get_num_threads() || kernels_of_type.few_rows_pay(params.attention)) {
    run_shares(kernel, params, Cut::none);
    return;
  }
  // Gradients that sum over keys and those that sum over rows apart, so that either can be cut.
  AttentionBackwardParams<T> by_row = params, by_key = params;
  by_row.grad_key = by_row.grad_value = {};
  at::Tensor means;
  if (in.softmax() && params.grad_key.data != nullptr) {
    means = in.by_row(in.compute_type());
    by_key.known_means = by_row.means = means.mutable_data_ptr<T>();
  }
  if (by_row.grad_query.data != nullptr || by_row.grad_logits != nullptr || by_row.means != nullptr) {
    run_shares(kernel, by_row, Cut::rows);
  }
  // Smaller blocks of keys give more shares. The blocks of rows stay: a key's gradient sums over them one by one.
  by_key.attention.blocking.keys = kernels_of_type.forward_blocking(in.keys()).keys;
  by_key.grad_query = {};
  by_key.grad_logits = nullptr;
  if (by_key.grad_key.data != nullptr || by_key.grad_value.data != nullptr) run_shares(kernel, by_key, Cut::keys);
}

// at::sum_to, with the same bits for any number of threads: torch cuts a sum to a single number into one part a thread,
// so that is taken in parts of a fixed length.
at::Tensor sum_to_mask(const at::Tensor& x, at::IntArrayRef sizes) {
  if (c10::multiply_integers(sizes) != 1) return at::sum_to(x, sizes);
  constexpr int64_t part = 4096;
  at::Tensor sums = x.flatten();
  while (sums.numel() > part) {
    const int64_t whole = sums.numel() / part * part;
    const at::Tensor parts = sums.narrow(0, 0, whole).view({-1, part}).sum(1);
    sums = at::cat({parts, sums.narrow(0, whole, sums.numel() - whole).sum(0, /*keepdim=*/true)});
  }
  return sums.sum().view(sizes);
}

Gradients backward(const Inputs& in, const Cotangents& grad, const at::Tensor& stats, std::array<bool, 4> needs) {
  const auto type = in.compute_type();
  Gradients gradients;
  const std::array<at::Tensor, 3> inputs = {in.query, in.key, in.value};
  for (int i = 0; i < 3; ++i) {
    if (!needs[i]) continue;
    gradients[i] = fresh_as(inputs[i], inputs[i].size(3));
    if (in.empty()) gradients[i].zero_();
  }
  if (needs[3]) {
    gradients[3] = at::zeros({in.batch(), in.heads(), in.rows(), in.keys()}, in.query.options().dtype(type));
  }
  if (!in.empty()) (type == at::kDouble ? run_backward<double> : run_backward<float>)(in, grad, stats, gradients);
  if (needs[3]) gradients[3] = sum_to_mask(gradients[3], in.mask->sizes()).to(in.mask->scalar_type());
  for (at::Tensor& gradient : gradients) {
    if (!gradient.defined()) gradient = at::empty({0}, in.query.options());
  }
  return gradients;
}

Inputs checked(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
               const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& key_lengths, double scale,
               bool causal, const std::string& activation) {
  check_attention(query, key, value, mask, key_lengths);
  std::optional<at::Tensor> lengths;
  if (key_lengths) {
    lengths = key_lengths->contiguous();
    check_lengths("key_lengths", *lengths, key.size(2));
  }
  return {query, key, value, mask, lengths, scale, causal, activation_of(activation)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const std::optional<at::Tensor>& mask,
    const std::optional<at::Tensor>& key_lengths, const at::Scalar& scale, bool causal, std::string activation,
    bool want_lse, bool want_weights) {
  const Inputs in = checked(query, key, value, mask, key_lengths, scale.toDouble(), causal, activation);
  const Outputs out = forward(in, want_lse, want_weights);
  return {out.out, out.lse, out.weights, out.stats};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention_backward(
    const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
    const std::optional<at::Tensor>& grad_weights, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& key_lengths,
    const at::Tensor& stats, const at::Scalar& scale, bool causal, std::string activation, std::array<bool, 4> needs) {
  const Inputs in = checked(query, key, value, mask, key_lengths, scale.toDouble(), causal, activation);
  const int64_t batch = in.batch(), heads = in.heads(), rows = in.rows();
  check_like("grad_out", grad_out, {batch, heads, rows, value.size(3)}, query.scalar_type());
  if (grad_lse) check_like("grad_lse", *grad_lse, {batch, heads, rows}, in.compute_type());
  if (grad_weights) check_like("grad_weights", *grad_weights, {batch, heads, rows, in.keys()}, query.scalar_type());
  if (in.softmax()) check_like("stats", stats, {2, batch, heads, rows}, in.compute_type());
  TORCH_CHECK_VALUE(!needs[3] || (mask && mask->is_floating_point()), "only an additive attn_mask has a gradient");
  std::optional<at::Tensor> lse;
  if (grad_lse) lse = grad_lse->contiguous();
  const auto [q, k, v, m] = backward(in, {grad_out, lse, grad_weights}, stats.contiguous(), needs);
  return {q, k, v, m};
}

}  // namespace
}  // namespace mhicl

TORCH_LIBRARY_IMPL(mhicl, CPU, m) {
  m.impl("attention", mhicl::attention);
  m.impl("attention_backward", mhicl::attention_backward);
}
