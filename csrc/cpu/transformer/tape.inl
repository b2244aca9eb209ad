// What is kept of a group of prompts between the forward and the backward pass, and where it lies.

// One layer of a group: entry g of an array belongs to its prompt g.
template <class T>
struct LayerTape {
  T* read;         // (G, T, C): what the layer reads; null in the first layer, which reads tokens
  T* queries;      // (G, lanes, H·E)
  T* keys_values;  // (G, n, 2·H·E)
  T* weights;      // (G, H, n, lanes)
  T* outputs;      // (G, H·E, lanes): what the heads put out, transposed
};

template <class T>
class Tape {
 public:
  Tape(const TransformerParams<T>& params, int64_t group, Pieces<T>& pieces)
      : params_(params), group_(group), begin_(pieces.take(size())) {}

  LayerTape<T> layer(int64_t index) const {
    Pieces<T> pieces(begin_);
    for (int64_t i = 0; i < index; ++i) take(i, pieces);
    return take(index, pieces);
  }
  int64_t lanes(int64_t layer) const { return padded<T>(params_.rows(layer)); }

 private:
  LayerTape<T> take(int64_t index, Pieces<T>& pieces) const {
    const TransformerLayer<T>& layer = params_.layers[index];
    const int64_t n = params_.context_length, inner = layer.inner();
    return {.read = index == 0 ? nullptr : pieces.take(group_ * params_.positions() * params_.width),
            .queries = pieces.take(group_ * lanes(index) * inner),
            .keys_values = pieces.take(group_ * n * 2 * inner),
            .weights = pieces.take(group_ * layer.heads * n * lanes(index)),
            .outputs = pieces.take(group_ * inner * lanes(index))};
  }
  int64_t size() const {
    Pieces<T> pieces(nullptr);
    for (int64_t i = 0; i < params_.n_layers; ++i) take(i, pieces);
    return pieces.taken();
  }

  const TransformerParams<T>& params_;
  const int64_t group_;
  T* const begin_;
};
