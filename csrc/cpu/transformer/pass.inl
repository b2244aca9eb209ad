// Forward and backward pass of a group of a few prompts, whose states stay in the caches between the two.

template <class T>
class TransformerPass {
 public:
  // With null pieces it only counts what it takes.
  TransformerPass(const TransformerParams<T>& params, int64_t group, Pieces<T>& pieces)
      : p_(params), tape_(params, group, pieces) {
    int64_t inner = 0, table = 0;
    for (int64_t i = 0; i < p_.n_layers; ++i) {
      inner = std::max(inner, p_.layers[i].inner());
      table = std::max(table, p_.context_length * tape_.lanes(i));
    }
    const int64_t lanes = padded<T>(p_.positions());
    states_ = pieces.take(group * p_.queries * p_.width);
    columns_ = pieces.take(inner * lanes);
    grad_states_ = pieces.take(group * p_.positions() * p_.width);
    grad_outputs_ = pieces.take(group * lanes * inner);
    grad_queries_ = pieces.take(group * inner * lanes);
    grad_keys_values_ = pieces.take(group * p_.context_length * 2 * inner);
    table_ = pieces.take(table);
    pairs_ = pieces.take(lanes / 2 * kLanes<T>);
  }

  // The queries' states after the last layer, (prompts, Q, W).
  const T* forward(int64_t first, int64_t prompts) {
    first_ = first;
    prompts_ = prompts;
    for (int64_t i = 0; i < p_.n_layers; ++i) forward_layer(i);
    return states_;
  }

  // From ∂loss/∂ŷ (prompts, Q); adds to the sums, or begins them.
  void backward(const T* grad_predictions, const TransformerSums<T>& sums, bool begin) {
    accumulate_ = !begin;
    read_out_backward(grad_predictions, sums.read_out());
    for (int64_t i = p_.n_layers - 1; i >= 0; --i) backward_layer(i, sums.layer(i));
    read_in_backward(sums.read_in());
  }

 private:
  const T* tokens() const { return p_.tokens + first_ * p_.positions() * p_.token_dim; }
  // What a layer reads, (prompts, T, C).
  const T* read(int64_t index) const { return index == 0 ? tokens() : tape_.layer(index).read; }
  int64_t read_step(int64_t index) const { return p_.positions() * p_.read_dim(index); }

  PromptHeads<T> heads(int64_t index, int64_t g) const {
    const TransformerLayer<T>& layer = p_.layers[index];
    const LayerTape<T> tape = tape_.layer(index);
    const int64_t n = p_.context_length, lanes = tape_.lanes(index);
    return {p_.activation, layer.heads, layer.head_dim, n, p_.rows(index), lanes,
            tape.queries + g * lanes * layer.inner(), tape.keys_values + g * n * 2 * layer.inner(),
            tape.weights + g * layer.heads * n * lanes, pairs_};
  }

  // h' = h + Σ_j W_O,j o_j for the rows that are wanted.
  void forward_layer(int64_t index) {
    const TransformerLayer<T>& layer = p_.layers[index];
    const LayerTape<T> tape = tape_.layer(index);
    const int64_t read_dim = p_.read_dim(index), inner = layer.inner(), n = p_.context_length;
    const int64_t rows = p_.rows(index), lanes = tape_.lanes(index), width = p_.width;
    const T* const from = read(index);
    const T* const of_rows = from + p_.first_row(index) * read_dim;
    gemm_of_each<T>(prompts_, {.rows = rows, .cols = inner, .depth = read_dim, .a = of_rows, .a_stride = read_dim,
                               .unit_rows = false, .b = layer.queries, .b_stride = inner, .c = tape.queries,
                               .c_stride = inner, .accumulate = false},
                    {read_step(index), 0, lanes * inner});
    gemm_of_each<T>(prompts_, {.rows = n, .cols = 2 * inner, .depth = read_dim, .a = from, .a_stride = read_dim,
                               .unit_rows = false, .b = layer.keys_values, .b_stride = 2 * inner, .c = tape.keys_values,
                               .c_stride = 2 * inner, .accumulate = false},
                    {read_step(index), 0, n * 2 * inner});
    for (int64_t g = 0; g < prompts_; ++g) {
      const PromptHeads<T> of_prompt = heads(index, g);
      transpose(of_prompt.queries, inner, lanes, inner, columns_, lanes);
      of_prompt.forward(columns_, tape.outputs + g * inner * lanes);
    }
    T* const to = p_.is_last(index) ? states_ : tape_.layer(index + 1).read;
    if (index == 0) {
      gemm_of_each<T>(prompts_, {.rows = rows, .cols = width, .depth = read_dim, .a = of_rows, .a_stride = read_dim,
                                 .unit_rows = false, .b = p_.read_in, .b_stride = width, .c = to, .c_stride = width,
                                 .accumulate = false},
                      {read_step(index), 0, rows * width});
    } else {
      for (int64_t g = 0; g < prompts_; ++g) {
        std::copy_n(of_rows + g * read_step(index), rows * width, to + g * rows * width);
      }
    }
    gemm_of_each<T>(prompts_, {.rows = rows, .cols = width, .depth = inner, .a = tape.outputs, .a_stride = lanes,
                               .unit_rows = true, .b = layer.outputs, .b_stride = width, .c = to, .c_stride = width,
                               .accumulate = true},
                    {inner * lanes, 0, rows * width});
  }

  // ŷ = w_out·h: ∂w_out = Σ ∂ŷ h and ∂h = ∂ŷ w_out.
  void read_out_backward(const T* grad_predictions, T* sum) {
    const int64_t width = p_.width;
    gemm<T>({.rows = 1, .cols = width, .depth = prompts_ * p_.queries, .a = grad_predictions, .a_stride = 1,
             .unit_rows = true, .b = states_, .b_stride = width, .c = sum, .c_stride = width,
             .accumulate = accumulate_});
    gemm_of_each<T>(prompts_, {.rows = p_.queries, .cols = width, .depth = 1, .a = grad_predictions, .a_stride = 1,
                               .unit_rows = false, .b = p_.read_out, .b_stride = width,
                               .c = grad_states_ + p_.context_length * width, .c_stride = width, .accumulate = false},
                    {p_.queries, 0, p_.positions() * width});
  }

  // From ∂h' in grad_states_, of the layer's rows, to ∂h, of all rows, in its place.
  void backward_layer(int64_t index, const TransformerLayerSums<T>& sums) {
    const TransformerLayer<T>& layer = p_.layers[index];
    const LayerTape<T> tape = tape_.layer(index);
    const int64_t inner = layer.inner(), n = p_.context_length, rows = p_.rows(index), lanes = tape_.lanes(index);
    const int64_t width = p_.width, grad_step = p_.positions() * width;
    T* const grad_rows = grad_states_ + p_.first_row(index) * width;
    gemm_of_each<T>(prompts_, {.rows = rows, .cols = inner, .depth = width, .a = grad_rows, .a_stride = width,
                               .unit_rows = false, .b = layer.outputs_transposed, .b_stride = inner,
                               .c = grad_outputs_, .c_stride = inner, .accumulate = false},
                    {grad_step, 0, lanes * inner});
    gemm_of_each<T>(prompts_, {.rows = inner, .cols = width, .depth = rows, .a = tape.outputs, .a_stride = lanes,
                               .unit_rows = false, .b = grad_rows, .b_stride = width, .c = sums.outputs,
                               .c_stride = width, .accumulate = accumulate_},
                    {inner * lanes, grad_step, 0});
    for (int64_t g = 0; g < prompts_; ++g) {
      const T* const grad = grad_outputs_ + g * lanes * inner;
      transpose(grad, inner, lanes, inner, columns_, lanes);
      heads(index, g).backward(grad, columns_, table_, grad_queries_ + g * inner * lanes,
                               grad_keys_values_ + g * n * 2 * inner);
    }
    projections_backward(index, sums);
    if (index > 0) states_backward(index);
  }

  void projections_backward(int64_t index, const TransformerLayerSums<T>& sums) {
    const int64_t inner = p_.layers[index].inner(), n = p_.context_length, lanes = tape_.lanes(index);
    const int64_t read_dim = p_.read_dim(index);
    const T* const from = read(index);
    gemm_of_each<T>(prompts_, {.rows = inner, .cols = read_dim, .depth = p_.rows(index), .a = grad_queries_,
                               .a_stride = lanes, .unit_rows = false, .b = from + p_.first_row(index) * read_dim,
                               .b_stride = read_dim, .c = sums.queries, .c_stride = read_dim,
                               .accumulate = accumulate_},
                    {inner * lanes, read_step(index), 0});
    gemm_of_each<T>(prompts_, {.rows = read_dim, .cols = 2 * inner, .depth = n, .a = from, .a_stride = read_dim,
                               .unit_rows = true, .b = grad_keys_values_, .b_stride = 2 * inner,
                               .c = sums.keys_values, .c_stride = 2 * inner, .accumulate = accumulate_},
                    {read_step(index), n * 2 * inner, 0});
  }

  // ∂h = ∂h' + W_Qᵀ ∂q + W_Kᵀ ∂k + W_Vᵀ ∂v; the last layer has no ∂h' of the context.
  void states_backward(int64_t index) {
    const TransformerLayer<T>& layer = p_.layers[index];
    const int64_t inner = layer.inner(), n = p_.context_length, lanes = tape_.lanes(index);
    const int64_t width = p_.width, grad_step = p_.positions() * width;
    gemm_of_each<T>(prompts_, {.rows = n, .cols = width, .depth = 2 * inner, .a = grad_keys_values_,
                               .a_stride = 2 * inner, .unit_rows = false, .b = layer.keys_values_transposed,
                               .b_stride = width, .c = grad_states_, .c_stride = width,
                               .accumulate = !p_.is_last(index)},
                    {n * 2 * inner, 0, grad_step});
    gemm_of_each<T>(prompts_, {.rows = p_.rows(index), .cols = width, .depth = inner, .a = grad_queries_,
                               .a_stride = lanes, .unit_rows = true, .b = layer.queries_transposed, .b_stride = width,
                               .c = grad_states_ + p_.first_row(index) * width, .c_stride = width,
                               .accumulate = true},
                    {inner * lanes, 0, grad_step});
  }

  // h⁰ = W_in z, but for what the first layer's folded projections take: ∂W_inᵀ = Σ z ∂h⁰ᵀ.
  void read_in_backward(T* sum) {
    const int64_t first = p_.first_row(0), width = p_.width;
    gemm_of_each<T>(prompts_, {.rows = p_.token_dim, .cols = width, .depth = p_.rows(0),
                               .a = tokens() + first * p_.token_dim, .a_stride = p_.token_dim, .unit_rows = true,
                               .b = grad_states_ + first * width, .b_stride = width, .c = sum, .c_stride = width,
                               .accumulate = accumulate_},
                    {read_step(0), p_.positions() * width, 0});
  }

  const TransformerParams<T>& p_;
  Tape<T> tape_;
  int64_t first_ = 0, prompts_ = 0;
  bool accumulate_ = false;  // whether sums hold something already
  T *states_, *columns_, *grad_states_, *grad_outputs_, *grad_queries_, *grad_keys_values_, *table_, *pairs_;
};
