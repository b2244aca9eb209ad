// The fused step with coefficients and label noise integrated out, given the covariates. What the loss and the gradient
// in OV need are sums over prompts; the gradient in the projections needs each prompt's own attention.

template <class T>
struct ConditionalPrompt {
  const ConditionalParams<T>& params;
  const StepPrompts<T>& p;
  int64_t rows, vectors, vectors_stride, panel_stride;
  PromptAttention<T> attention;
  T *normals;    // (chunk, d): ξ_q
  T *projected;  // (chunk, H, d): r, then ∂r
  T *averages;   // (1 + H, vectors_stride): ξ_q, then each head's Σ_l p_lh ξ_l and its row of K
  T *in_x;       // (1 + H, vectors_stride): v = (x_q, a_1, …, a_H), the same where A is the identity
  T *panel;      // (H, d + H): ∂a_h, and what multiplies the probabilities
  T *whitened;   // (H, d)

  ConditionalPrompt(const ConditionalParams<T>& params, Pieces<T>& pieces)
      : params(params),
        p(params.prompts),
        rows(p.dim_x + (params.overlap_weights ? p.heads : 0)),
        vectors(1 + p.heads),
        vectors_stride(padded<T>(p.dim_x + p.heads)),
        panel_stride(vectors_stride),
        attention(p.context_length, p.dim_x, p.heads, pieces) {
    normals = pieces.take(kStepChunk * p.dim_x);
    projected = pieces.take(kStepChunk * p.heads * p.dim_x);
    averages = pieces.take(vectors * vectors_stride);
    in_x = params.covariance_factor ? pieces.take(vectors * vectors_stride) : averages;
    panel = pieces.take(p.heads * panel_stride);
    whitened = pieces.take(p.heads * p.dim_x);
  }

  ChunkQueries<T> queries() const { return {p.dim_x, p.heads * p.dim_x, normals, p.dim_x}; }
  const T* vector(int64_t m) const { return in_x + m * vectors_stride; }

  void draw_chunk(int64_t first, int64_t count) {
    for (int64_t n = 0; n < count; ++n) {
      elements<StandardNormals<T>>(normals + n * p.dim_x, p.dim_x, p.range.stream(first + n, philox::kPrompt), 0);
    }
    queries().project(params.projections, count, projected);
    if (params.overlap_weights == nullptr) return;
    for (int64_t h = 0; h < p.heads; ++h) {
      std::copy_n(params.overlap_weights + h * p.heads, p.heads, panel + h * panel_stride + p.dim_x);
    }
  }

  // rows (count, vectors_stride) · factor, with rows of A where factor is A, or of Aᵀ.
  void multiply(const T* in, const T* factor, int64_t count, T* out) const {
    gemm<T>({.rows = count, .cols = p.dim_x, .depth = p.dim_x, .a = in, .a_stride = vectors_stride, .unit_rows = false,
             .b = factor, .b_stride = p.dim_x, .c = out, .c_stride = vectors_stride, .accumulate = false});
  }

  void add_products(T* products) const {
    for (int64_t m = 0; m < vectors; ++m) {
      for (int64_t n = m; n < vectors; ++n, products += p.dim_x) add_product(vector(m), vector(n), products, p.dim_x);
    }
  }

  // ∂a_h without V's part, into `out` (H, panel_stride).
  void residual_gradient(T* out) const {
    const T* weights = params.residual_weights;
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t j = 0; j < p.dim_x; j += kLanes<T>) {
        const Head<T> here(std::min<int64_t>(kLanes<T>, p.dim_x - j));
        Vec<T> sum{};
        for (int64_t m = 0; m < vectors; ++m) {
          sum = fma<T>(load(weights + (h * vectors + m) * p.dim_x + j, here), load(vector(m) + j, here), sum);
        }
        store(out + h * panel_stride + j, sum, here);
      }
    }
  }

  // ‖Σ_h V_h a_h‖², its gradient in V added to `sums`, that in a_h to `out`.
  T add_covariate_outputs(T* sums, T* out) const {
    T loss = 0;
    for (int64_t i = 0; i < p.tasks; ++i) {
      const T* v = params.covariate_outputs + i * p.heads * p.dim_x;
      T output = 0;
      for (int64_t h = 0; h < p.heads; ++h) output += inner(v + h * p.dim_x, vector(1 + h), p.dim_x);
      loss += output * output;
      for (int64_t h = 0; h < p.heads; ++h) {
        add_scaled(T(2) * output, vector(1 + h), sums + (i * p.heads + h) * p.dim_x, p.dim_x);
        add_scaled(T(2) * output, v + h * p.dim_x, out + h * panel_stride, p.dim_x);
      }
    }
    return loss;
  }

  // One prompt's share of the sums but for the projections'; leaves ∂r in place n of the chunk. Returns V's part of the
  // loss.
  T step(int64_t prompt, int64_t n, const ConditionalSums<T>& sums) {
    T* r = projected + n * p.heads * p.dim_x;
    fill_tiles<T>(p.range.stream(prompt, philox::kContext), 0, p.dim_x, attention.tiles.count, attention.block,
                  attention.width);
    attention.attend(r, p.dim_x, p.dim_x);
    std::copy_n(normals + n * p.dim_x, p.dim_x, averages);
    attention.average(rows, averages + vectors_stride, vectors_stride);
    if (params.covariance_factor) multiply(averages, params.covariance_factor_transposed, vectors, in_x);
    add_products(sums.products);
    if (params.overlap_weights) {
      for (int64_t h = 0; h < p.heads; ++h) {
        const T* overlap = averages + (1 + h) * vectors_stride + p.dim_x;
        for (int64_t g = 0; g < p.heads; ++g) sums.overlaps[h * p.heads + g] += overlap[g];
      }
    }
    residual_gradient(panel);
    const T loss = params.covariate_outputs ? add_covariate_outputs(sums.covariate_outputs, panel) : T(0);
    if (params.covariance_factor) whiten_panel();
    attention.differentiate(panel, panel_stride, rows);
    attention.weigh(p.dim_x, r, p.dim_x);
    return loss;
  }

  // ∂ξ-averages = Aᵀ ∂a_h.
  void whiten_panel() const {
    gemm<T>({.rows = p.heads, .cols = p.dim_x, .depth = p.dim_x, .a = panel, .a_stride = panel_stride, .unit_rows = false,
             .b = params.covariance_factor, .b_stride = p.dim_x, .c = whitened, .c_stride = p.dim_x,
             .accumulate = false});
    for (int64_t h = 0; h < p.heads; ++h) std::copy_n(whitened + h * p.dim_x, p.dim_x, panel + h * panel_stride);
  }
};

template <class T>
int64_t conditional_workspace(const ConditionalParams<T>& params) {
  Pieces<T> pieces(nullptr);
  const ConditionalPrompt<T> layout(params, pieces);
  return pieces.taken();
}

template <class T>
void conditional_step(const ConditionalParams<T>& params, int64_t begin, int64_t end, T* workspace, T* out,
                      double* loss) {
  Pieces<T> pieces(workspace);
  ConditionalPrompt<T> prompt(params, pieces);
  const ConditionalSums<T> sums(params, out);
  std::fill_n(out, ConditionalSums<T>::size(params), T(0));
  *loss = 0;
  for (int64_t first = begin; first < end; first += kStepChunk) {
    const int64_t count = std::min(kStepChunk, end - first);
    prompt.draw_chunk(first, count);
    for (int64_t n = 0; n < count; ++n) *loss += double(prompt.step(first + n, n, sums));
    prompt.queries().add_gradient(prompt.projected, count, sums.projections, true);
  }
}
