// The transformer's kernels: groups of prompts, one after another.

// A pass with its memory, for as many prompts at a time as pay: they share the fetching of weights, which need not fit into
// the caches beside their states.
template <class T>
class OwnedPass {
 public:
  // For `prompts` prompts in all.
  OwnedPass(const TransformerParams<T>& params, int64_t prompts)
      : params_(params),
        group_(std::clamp<int64_t>(kGroupBytes / (size(params, 1) * int64_t(sizeof(T))), 1,
                                   std::min(kMostPrompts, prompts))),
        workspace_(size(params, group_)),
        pieces_(workspace_.take(0)),
        pass_(params, group_, pieces_),
        predictions_(pieces_.take(group_ * params.queries)) {}

  // visit(first, count, ŷ (count, Q)) for each group of prompts [begin, end).
  template <class Visit>
  void predict(int64_t begin, int64_t end, const Visit& visit) {
    for (int64_t first = begin; first < end; first += group_) {
      const int64_t count = std::min(group_, end - first), rows = count * params_.queries;
      const T* const states = pass_.forward(first, count);
      for (int64_t r = 0; r < rows; ++r) {
        predictions_[r] = inner(states + r * params_.width, params_.read_out, params_.width);
      }
      visit(first, count, predictions_);
    }
  }
  TransformerPass<T>& pass() { return pass_; }

 private:
  static constexpr int64_t kMostPrompts = 4, kGroupBytes = 1 << 22;

  static int64_t size(const TransformerParams<T>& params, int64_t group) {
    Pieces<T> pieces(nullptr);
    TransformerPass<T> counted(params, group, pieces);
    pieces.take(group * params.queries);
    return pieces.taken() + Workspace<T>::padded(0);
  }

  const TransformerParams<T>& params_;
  const int64_t group_;
  Workspace<T> workspace_;
  Pieces<T> pieces_;
  TransformerPass<T> pass_;
  T* const predictions_;
};

template <class T>
void transformer_predict(const TransformerParams<T>& p, int64_t begin, int64_t end, T* predictions) {
  OwnedPass<T>(p, end - begin).predict(begin, end, [&](int64_t first, int64_t count, const T* of_group) {
    std::copy_n(of_group, count * p.queries, predictions + first * p.queries);
  });
}

template <class T>
void transformer_step(const TransformerParams<T>& p, int64_t begin, int64_t end, T* sums, double* loss) {
  OwnedPass<T> owned(p, end - begin);
  double total = 0;
  owned.predict(begin, end, [&](int64_t first, int64_t count, T* of_group) {
    for (int64_t r = 0; r < count * p.queries; ++r) {
      const T residual = of_group[r] - p.target[first * p.queries + r];
      total += double(residual) * double(residual);
      of_group[r] = p.residual_factor * residual;
    }
    owned.pass().backward(of_group, TransformerSums<T>(p, sums), first == begin);
  });
  *loss = total;
}
