// General attention: checks, outputs, and the shares of the threads.

#include <torch/library.h>

#include "../attention_inputs.h"
#include "fresh.h"
#include "kernels.h"
#include "parallel.h"
#include "../storage.h"

namespace mhicl {
namespace {

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

template <class T>
void run_forward(const AttentionInputs& in, const AttentionOutputs& out) {
  const AttentionKernels<T>& kernel = kernels().attention<T>();
  const auto params = forward_params<T>(in, out, kernel.forward_blocking(in.keys()));
  run_shares(kernel.forward, params, kernel.few_rows_pay(params.attention) ? Cut::none : Cut::rows);
}

template <class T>
void run_backward(const AttentionInputs& in, const AttentionCotangents& grad, const AttentionGradients& gradients) {
  const AttentionKernels<T>& kernels_of_type = kernels().attention<T>();
  const auto& kernel = kernels_of_type.backward;
  const auto params = backward_params<T>(in, grad, gradients, kernels_of_type.backward_blocking(in.keys()));
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

AttentionInputs checked(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& key_lengths,
                        const at::Scalar& scale, bool causal, const std::string& activation) {
  AttentionInputs in = attention_inputs(query, key, value, mask, key_lengths, scale, causal, activation);
  if (in.key_lengths) check_lengths("key_lengths", *in.key_lengths, in.keys());
  return in;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const std::optional<at::Tensor>& mask,
    const std::optional<at::Tensor>& key_lengths, const at::Scalar& scale, bool causal, std::string activation,
    bool want_lse, bool want_weights) {
  const AttentionInputs in = checked(query, key, value, mask, key_lengths, scale, causal, activation);
  const AttentionOutputs out = attention_outputs(in, want_lse, want_weights, fresh);
  if (!in.empty()) (in.compute_type() == at::kDouble ? run_forward<double> : run_forward<float>)(in, out);
  return {out.out, out.lse, out.weights, out.stats};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention_backward(
    const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse,
    const std::optional<at::Tensor>& grad_weights, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& key_lengths,
    const at::Tensor& stats, const at::Scalar& scale, bool causal, std::string activation, std::array<bool, 4> needs) {
  const AttentionInputs in = checked(query, key, value, mask, key_lengths, scale, causal, activation);
  const AttentionCotangents grad = attention_cotangents(in, grad_out, grad_lse, grad_weights, stats);
  const AttentionGradients gradients = attention_gradients(in, needs, fresh);
  if (!in.empty()) (in.compute_type() == at::kDouble ? run_backward<double> : run_backward<float>)(in, grad, gradients);
  return as_returned(in, gradients, sum_to_mask);
}

}  // namespace
}  // namespace mhicl

TORCH_LIBRARY_IMPL(mhicl, CPU, m) {
  m.impl("attention", mhicl::attention);
  m.impl("attention_backward", mhicl::attention_backward);
}
