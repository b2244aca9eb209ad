// The transformer's weights as its kernels want them, made once a step, and the way back for their gradients.
#pragma once

#include <vector>

#include "../../transformer_inputs.h"
#include "../kernels.h"

namespace mhicl {

// A · B, or Aᵀ · B: the same bits for every number of threads, which torch's product does not promise.
template <class T>
at::Tensor product(const at::Tensor& a, bool transpose_a, const at::Tensor& b) {
  at::Tensor out = at::empty({a.size(transpose_a ? 1 : 0), b.size(1)}, a.options());
  kernels().matrix<T>().gemm({.rows = out.size(0), .cols = out.size(1), .depth = b.size(0),
                              .a = a.const_data_ptr<T>(), .a_stride = a.size(1), .unit_rows = transpose_a,
                              .b = b.const_data_ptr<T>(), .b_stride = b.size(1), .c = out.mutable_data_ptr<T>(),
                              .c_stride = out.size(1), .accumulate = false});
  return out;
}

inline at::Tensor transposed(const at::Tensor& matrix) { return matrix.t().contiguous(); }

template <class T>
class TransformerWeights {
 public:
  explicit TransformerWeights(const TransformerInputs& in)
      : in_(in),
        tokens_(in.tokens.contiguous()),
        read_in_(transposed(in.read_in())),
        read_out_(in.read_out().contiguous()),
        layers_(in.n_layers()),
        of_kernels_(in.n_layers()) {
    for (int64_t i = 0; i < in.n_layers(); ++i) {
      Layer& layer = layers_[i];
      layer.queries_transposed = (in.q(i) * logit_scale(i)).contiguous();
      layer.keys_values_transposed = at::cat({in.k(i), in.v(i)});
      layer.outputs = transposed(in.o(i));
      layer.outputs_transposed = in.o(i).contiguous();
      layer.queries = transposed(layer.queries_transposed);
      layer.keys_values = transposed(layer.keys_values_transposed);
      if (i == 0) {  // W_in folded in
        layer.queries = product<T>(read_in_, false, layer.queries);
        layer.keys_values = product<T>(read_in_, false, layer.keys_values);
      }
      of_kernels_[i] = {in.heads[i], in.head_dims[i], layer.queries.template const_data_ptr<T>(),
                        layer.keys_values.template const_data_ptr<T>(), layer.outputs.template const_data_ptr<T>(),
                        layer.queries_transposed.template const_data_ptr<T>(),
                        layer.keys_values_transposed.template const_data_ptr<T>(),
                        layer.outputs_transposed.template const_data_ptr<T>()};
    }
  }

  TransformerParams<T> params() const {
    return {.activation = in_.activation,
            .n_prompts = in_.n_prompts(),
            .context_length = in_.context_length(),
            .queries = in_.queries,
            .token_dim = in_.token_dim(),
            .width = in_.width(),
            .n_layers = in_.n_layers(),
            .layers = of_kernels_.data(),
            .read_in = read_in_.const_data_ptr<T>(),
            .read_out = read_out_.const_data_ptr<T>(),
            .tokens = tokens_.const_data_ptr<T>(),
            .target = nullptr,
            .residual_factor = T(0)};
  }

  // The gradients of the weights, in their order, from the kernels' sums.
  std::vector<at::Tensor> gradients(const at::Tensor& sums) const {
    const TransformerParams<T> p = params();
    const TransformerSums<T> at(p, sums.mutable_data_ptr<T>());
    const auto view = [&](const T* begin, int64_t rows, int64_t cols) {
      return sums.narrow(0, begin - sums.const_data_ptr<T>(), rows * cols).view({rows, cols});
    };
    at::Tensor grad_read_in = view(at.read_in(), p.token_dim, p.width);
    std::vector<at::Tensor> of_layers;
    for (int64_t i = 0; i < p.n_layers; ++i) {
      const TransformerLayerSums<T> layer = at.layer(i);
      const int64_t inner = p.layers[i].inner(), read_dim = p.read_dim(i);
      at::Tensor queries = view(layer.queries, inner, read_dim);
      at::Tensor keys_values = view(layer.keys_values, read_dim, 2 * inner);
      if (i == 0) {
        grad_read_in = grad_read_in + product<T>(queries, true, layers_[0].queries_transposed) +
                  product<T>(keys_values, false, layers_[0].keys_values_transposed);
        queries = product<T>(queries, false, read_in_);
        keys_values = product<T>(keys_values, true, read_in_).t();
      }
      of_layers.push_back(queries * logit_scale(i));
      for (const int64_t first : {int64_t(0), inner}) {
        of_layers.push_back(keys_values.narrow(1, first, inner).t().clone(at::MemoryFormat::Contiguous));
      }
      of_layers.push_back(transposed(view(layer.outputs, inner, p.width)));
    }
    std::vector<at::Tensor> gradients = {transposed(grad_read_in)};
    gradients.insert(gradients.end(), of_layers.begin(), of_layers.end());
    gradients.push_back(view(at.read_out(), 1, p.width)[0].clone());
    return gradients;
  }

 private:
  struct Layer {
    at::Tensor queries, keys_values, outputs, queries_transposed, keys_values_transposed, outputs_transposed;
  };

  // Linear attention averages over the context.
  double logit_scale(int64_t layer) const {
    const bool average = in_.activation == Activation::linear && in_.context_length() > 0;
    return in_.scales[layer] / (average ? double(in_.context_length()) : 1.0);
  }

  const TransformerInputs in_;
  const at::Tensor tokens_, read_in_, read_out_;
  std::vector<Layer> layers_;
  std::vector<TransformerLayer<T>> of_kernels_;
};

}  // namespace mhicl
