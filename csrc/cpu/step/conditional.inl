// The fused step with coefficients and label noise integrated out, given the covariates. What the loss and the gradient
// in OV need are sums over prompts; the gradient in the projections needs each prompt's own attention.

template <class T>
struct ConditionalPrompt {
  const ResidualParams<T>& params;
  const StepPrompts<T>& p;
  int64_t rows;  // the covariates and, where K counts, the probabilities
  ResidualChunk<T> chunk;
  Residuals<T> residuals;
  PromptAttention<T> attention;
  T* panel;  // (H, d + H): ∂a_h, and what multiplies the probabilities

  ConditionalPrompt(const ResidualParams<T>& params, Pieces<T>& pieces)
      : params(params),
        p(params.prompts),
        rows(p.dim_x + (params.overlap_weights ? p.heads : 0)),
        chunk(params, pieces),
        residuals(params, pieces),
        attention(p.context_length, p.dim_x, p.heads, pieces) {
    panel = pieces.take(p.heads * residuals.stride);
  }

  void fill_panel() const {
    if (params.overlap_weights == nullptr) return;
    for (int64_t h = 0; h < p.heads; ++h) {
      std::copy_n(params.overlap_weights + h * p.heads, p.heads, panel + h * residuals.stride + p.dim_x);
    }
  }

  // ‖Σ_h V_h a_h‖², its gradient in V added to `sums`, that in a_h to the panel.
  T add_covariate_outputs(T* sums) const {
    T loss = 0;
    for (int64_t i = 0; i < p.tasks; ++i) {
      const T* v = params.covariate_outputs + i * p.heads * p.dim_x;
      T output = 0;
      for (int64_t h = 0; h < p.heads; ++h) output += inner(v + h * p.dim_x, residuals.vector(1 + h), p.dim_x);
      loss += output * output;
      for (int64_t h = 0; h < p.heads; ++h) {
        add_scaled(T(2) * output, residuals.vector(1 + h), sums + (i * p.heads + h) * p.dim_x, p.dim_x);
        add_scaled(T(2) * output, v + h * p.dim_x, panel + h * residuals.stride, p.dim_x);
      }
    }
    return loss;
  }

  // One prompt's share of the sums but for the projections'; leaves ∂r in place n of the chunk. Returns V's part of the
  // loss.
  T step(int64_t prompt, int64_t n, const ResidualSums<T>& sums) const {
    T* r = chunk.projected_of(n);
    fill_tiles<T>(p.range.stream(prompt, philox::kContext), 0, p.dim_x, attention.tiles.count, attention.block,
                  attention.width);
    attention.attend(r, p.dim_x, p.dim_x);
    std::copy_n(chunk.query_of(n), p.dim_x, residuals.whitened);
    T* const averages = residuals.whitened + residuals.stride;
    attention.average(rows, averages, residuals.stride);
    residuals.to_x();
    residuals.add_products(sums.products);
    if (params.overlap_weights) add_overlaps(averages + p.dim_x, residuals.stride, p.heads, sums.overlaps);
    residuals.gradient(panel, residuals.stride);
    const T loss = params.covariate_outputs ? add_covariate_outputs(sums.covariate_outputs) : T(0);
    residuals.to_whitened(panel, residuals.stride, p.heads);
    attention.differentiate(panel, residuals.stride, 0, rows);
    attention.weigh(p.dim_x, r, p.dim_x);
    return loss;
  }
};

template <class T>
int64_t conditional_workspace(const ResidualParams<T>& params) {
  Pieces<T> pieces(nullptr);
  const ConditionalPrompt<T> layout(params, pieces);
  return pieces.taken();
}

template <class T>
void conditional_step(const ResidualParams<T>& params, int64_t begin, int64_t end, T* workspace, T* out, double* loss) {
  Pieces<T> pieces(workspace);
  const ConditionalPrompt<T> prompt(params, pieces);
  const ResidualSums<T> sums(params, out);
  std::fill_n(out, ResidualSums<T>::size(params), T(0));
  *loss = 0;
  prompt.fill_panel();
  for (int64_t first = begin; first < end; first += kStepChunk) {
    const int64_t count = std::min(kStepChunk, end - first);
    prompt.chunk.draw(first, count);
    for (int64_t n = 0; n < count; ++n) *loss += double(prompt.step(first + n, n, sums));
    prompt.chunk.queries().add_gradient(prompt.chunk.projected, count, sums.projections, true);
  }
}
