// The schemas of all operators, and nothing else: what each computes is registered beside its code.

#include "library.h"

MHICL_OPERATORS(m) {
  m.def("cuda_self_check(Tensor x) -> Tensor");

  // kq (H, D, D) -> moments (N, H, D), overlaps (N, H, H) or empty.
  m.def(
      "prompt_moments(Tensor context, Tensor query, Tensor kq, Tensor? context_lengths, bool want_overlaps)"
      " -> (Tensor moments, Tensor overlaps)");
  // needs: the gradients of context, query, kq; the others come back empty.
  m.def(
      "prompt_moments_backward(Tensor grad_moments, Tensor? grad_overlaps, Tensor context, Tensor query, Tensor kq,"
      " Tensor? context_lengths, bool[3] needs) -> (Tensor, Tensor, Tensor)");
  // kq (M, H, D, D), ov (M, H, O, D) -> out (M, N, O), and what the backward pass wants kept: moments (N, M·H, D), and
  // the derivatives (N, O, M·H, D) of each head's outputs in its projected query, which spare it the context.
  m.def(
      "prompt_attention(Tensor context, Tensor query, Tensor kq, Tensor ov, Tensor? context_lengths,"
      " bool keep_moments, bool keep_jacobian) -> (Tensor out, Tensor moments, Tensor jacobian)");
  m.def(
      "prompt_attention_backward(Tensor grad_out, Tensor context, Tensor query, Tensor kq, Tensor ov,"
      " Tensor? context_lengths, Tensor moments, Tensor jacobian, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)");

  // query (B, Hq, Lq, E), key (B, Hk, L, E), value (B, Hk, L, Ev), attn_mask (B or 1, Hq or 1, Lq or 1, L or 1), boolean
  // or added to the logits, key_lengths (B). activation: "softmax", "linear" or "relu". -> out (B, Hq, Lq, Ev); lse
  // (B, Hq, Lq) and weights (B, Hq, Lq, L), or empty; stats (2, B, Hq, Lq), the softmax's maxima and sums, or empty. out
  // is laid out (B, Lq, Hq, Ev) if query's heads stand inside its rows, and so is each gradient after its tensor. scale is a
  // Scalar, since a float would bind what torch.compile makes to its value where it depends on a size.
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? key_lengths, *, Scalar scale,"
      " bool is_causal, str activation, bool want_lse, bool want_weights)"
      " -> (Tensor out, Tensor lse, Tensor weights, Tensor stats)");
  // needs: the gradients of query, key, value, attn_mask; the others come back empty.
  m.def(
      "attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor? grad_weights, Tensor query, Tensor key,"
      " Tensor value, Tensor? attn_mask, Tensor? key_lengths, Tensor stats, *, Scalar scale, bool is_causal,"
      " str activation, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)");

  // The sampler fills context (N, L, d + I), query (N, d + I), target (N, I), or whitened covariates xi (N, L, d),
  // xi_query (N, d). The seed is 64 bits, read as signed.
  m.def(
      "sample_multi_task(Tensor(a!) context, Tensor(b!) query, Tensor(c!) target, Tensor coefficient_scale,"
      " Tensor? covariance_factor, *, int seed, int step, int first_prompt, float noise_std, bool noisy_target) -> ()");
  m.def("sample_covariates(Tensor(a!) xi, Tensor(b!) xi_query, *, int seed, int step, int first_prompt) -> ()");
  // Fill out (count) with a stream's elements from the first on: as 32-bit words in int32, as normals.
  m.def("philox_words(Tensor(a!) out, *, int seed, int step, int prompt, int stream, int first_element) -> ()");
  m.def("philox_normals(Tensor(a!) out, *, int seed, int step, int prompt, int stream, int first_element) -> ()");
  // The loss and its gradients in kq (H, D, D), ov (H, I, D) over the prompts of one step, which never exist in memory.
  // support (I, d), signal (I) and covariance_factor (d, d) are float64. atoms (d), int64: average the gradients over the
  // symmetries of the task, whose covariates with the same number are interchangeable.
  m.def(
      "flow_step(Tensor kq, Tensor ov, Tensor support, Tensor signal, Tensor? covariance_factor, Tensor? atoms, *,"
      " int context_length, float noise_std, bool noisy_target, str estimator, int n_prompts, int seed, int step,"
      " int first_prompt, int threads) -> (float loss, Tensor grad_kq, Tensor grad_ov)");
  // Steps step, step + 1, … of training, up to n_steps, fewer once max_seconds have passed. parameters: [kq, ov] or
  // [w_q, w_k, w_v, w_o]; state: what the optimizer keeps, one tensor a parameter of each kind. step_cap 0: none. The
  // processes of a group, `world` in number, make the same steps with one message each, an evaluation's (n_steps = 0)
  // included, each from its share of the prompts; with tree, to the bits of one process. stop asks all of them to end after
  // the next step; stopped: some process did. lost: why a message did not get through, after which no update was made, or
  // empty.
  m.def(
      "train_steps(Tensor(a!)[] parameters, Tensor(b!)[] state, Tensor support, Tensor signal,"
      " Tensor? covariance_factor, Tensor? atoms, *, int context_length, float noise_std, bool noisy_target,"
      " str estimator, int n_prompts, int seed, int step, int n_steps, float max_seconds, float scale, str optimizer,"
      " float learning_rate, float step_cap, float momentum, float weight_decay, float flow_time, int threads,"
      " int rank=0, int world=1, str group='', bool tree=False, bool stop=False)"
      " -> (int steps_done, bool finite, float first_loss, float first_gradient_norm, float last_loss,"
      " float flow_time, float step_size, bool stopped, str lost)");
  // An attention-only transformer: tokens (N, n + Q, d + 1), target (N, Q), weights: read-in (W, d + 1), then q, k, v
  // (H·E, W) and o (W, H·E) of each layer, then read-out (W); heads, head_dims and scales of the logits have an entry a
  // layer. activation: "softmax" or "linear", which divides by n. -> the mean squared error, float64, and the gradients of
  // the weights; or the predictions (N, Q).
  m.def(
      "transformer_step(Tensor tokens, Tensor target, Tensor[] weights, *, int[] heads, int[] head_dims,"
      " float[] scales, str activation) -> (Tensor loss, Tensor[] gradients)");
  m.def(
      "transformer_predict(Tensor tokens, SymInt n_queries, Tensor[] weights, *, int[] heads, int[] head_dims,"
      " float[] scales, str activation) -> Tensor");
  // Multiply-adds at the processor's best on all threads; returns how many operations they were.
  m.def("fma_burst(int rounds, bool double_precision) -> float");
}
