// What the kernels of an attention-only transformer are called with: plain sizes and pointers, all arrays contiguous.
//
//   h⁰ = W_in z,  h^{ℓ+1} = h^ℓ + Σ_j W_O,j Σ_l a_jl W_V,j h_l,  a_j· = activation of (s W_K,j h_l)·(W_Q,j h) over the context,
//   ŷ = w_out · h^L at the queries.
//
// The first layer reads the tokens themselves, with W_in folded into its projections, and every W_Q has its layer's
// scale s folded in. So a layer reads rows x (T, C): tokens (T, d + 1) in the first, hidden states (T, W) in the others.
#pragma once

#include <cstdint>

#include "attention_params.h"

namespace mhicl {

// Weights with the shapes in which products want them, H·E numbers of all heads side by side.
template <class T>
struct TransformerLayer {
  int64_t heads, head_dim;
  const T* queries;                 // (C, H·E): s W_Qᵀ
  const T* keys_values;             // (C, 2·H·E): W_Kᵀ and W_Vᵀ side by side
  const T* outputs;                 // (H·E, W): W_Oᵀ
  const T* queries_transposed;      // (H·E, C); the transposed are for gradients of hidden states
  const T* keys_values_transposed;  // (2·H·E, C)
  const T* outputs_transposed;      // (W, H·E)

  int64_t inner() const { return heads * head_dim; }
};

template <class T>
struct TransformerParams {
  Activation activation;  // softmax or linear
  int64_t n_prompts, context_length, queries, token_dim, width, n_layers;
  const TransformerLayer<T>* layers;
  const T* read_in;   // (d + 1, W): W_inᵀ
  const T* read_out;  // (W)
  const T* tokens;    // (N, n + Q, d + 1)
  const T* target;    // (N, Q); null for predictions
  T residual_factor;  // ∂loss/∂ŷ = residual_factor · (ŷ − target)

  int64_t positions() const { return context_length + queries; }
  int64_t read_dim(int64_t layer) const { return layer == 0 ? token_dim : width; }
  bool is_last(int64_t layer) const { return layer == n_layers - 1; }
  // Only queries' states are wanted of the last layer.
  int64_t first_row(int64_t layer) const { return is_last(layer) ? context_length : 0; }
  int64_t rows(int64_t layer) const { return positions() - first_row(layer); }
};

// Sums over prompts of one layer's gradients, in this order.
template <class T>
struct TransformerLayerSums {
  T* queries;      // (H·E, C)
  T* keys_values;  // (C, 2·H·E)
  T* outputs;      // (H·E, W)
};

// All sums: the layers' one after another, then those of read-in and read-out.
template <class T>
class TransformerSums {
 public:
  TransformerSums(const TransformerParams<T>& params, T* begin) : params_(params), begin_(begin) {}

  static int64_t size(const TransformerParams<T>& p) {
    int64_t elements = (p.token_dim + 1) * p.width;
    for (int64_t i = 0; i < p.n_layers; ++i) elements += layer_size(p, i);
    return elements;
  }
  TransformerLayerSums<T> layer(int64_t index) const {
    T* const at = begin_of(index);
    const int64_t queries = params_.layers[index].inner() * params_.read_dim(index);
    return {at, at + queries, at + 3 * queries};
  }
  T* read_in() const { return begin_of(params_.n_layers); }  // (d + 1, W)
  T* read_out() const { return read_in() + params_.token_dim * params_.width; }

 private:
  static int64_t layer_size(const TransformerParams<T>& p, int64_t index) {
    return p.layers[index].inner() * (3 * p.read_dim(index) + p.width);
  }
  T* begin_of(int64_t index) const {
    T* at = begin_;
    for (int64_t i = 0; i < index; ++i) at += layer_size(params_, i);
    return at;
  }

  const TransformerParams<T>& params_;
  T* const begin_;
};

template <class T>
struct TransformerKernels {
  // Overwrites `sums` with those of prompts [begin, end), of which there is one at least, and `loss` with Σ (ŷ − target)².
  void (*step)(const TransformerParams<T>& params, int64_t begin, int64_t end, T* sums, double* loss);
  // ŷ (N, Q) of prompts [begin, end), of which there is one at least.
  void (*predict)(const TransformerParams<T>& params, int64_t begin, int64_t end, T* predictions);
};

}  // namespace mhicl
