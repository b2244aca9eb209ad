// The residuals of prompts whose coefficients and label noise are integrated out: quadratic in the vectors
// v = (x_q, a_1, …, a_H), covariate by covariate.

template <class T>
struct Residuals {
  const ResidualParams<T>& params;
  const StepPrompts<T>& p;
  int64_t vectors, stride;
  T* whitened;  // (1 + H, stride): ξ_q, then each head's average of ξ; a row may go on past its d numbers
  T* in_x;      // (1 + H, stride): v, the same where A is the identity
  T* scratch;   // (1 + H, d)

  Residuals(const ResidualParams<T>& params, Pieces<T>& pieces)
      : params(params), p(params.prompts), vectors(1 + p.heads), stride(padded<T>(p.dim_x + p.heads)) {
    whitened = pieces.take(vectors * stride);
    in_x = params.covariance_factor ? pieces.take(vectors * stride) : whitened;
    scratch = params.covariance_factor ? pieces.take(vectors * p.dim_x) : nullptr;
  }

  const T* vector(int64_t m) const { return in_x + m * stride; }

  // out (count, ·) = in (count, ·) · factor, of which only the first d numbers of a row count.
  void multiply(const T* in, int64_t in_stride, const T* factor, int64_t count, T* out, int64_t out_stride) const {
    gemm<T>({.rows = count, .cols = p.dim_x, .depth = p.dim_x, .a = in, .a_stride = in_stride, .unit_rows = false,
             .b = factor, .b_stride = p.dim_x, .c = out, .c_stride = out_stride, .accumulate = false});
  }

  // From `whitened` to v.
  void to_x() const {
    if (params.covariance_factor) multiply(whitened, stride, params.covariance_factor_transposed, vectors, in_x, stride);
  }

  // Rows of gradients in x to gradients in ξ, in place: g -> Aᵀ g.
  void to_whitened(T* gradients, int64_t gradient_stride, int64_t count) const {
    if (params.covariance_factor == nullptr) return;
    multiply(gradients, gradient_stride, params.covariance_factor, count, scratch, p.dim_x);
    for (int64_t h = 0; h < count; ++h) std::copy_n(scratch + h * p.dim_x, p.dim_x, gradients + h * gradient_stride);
  }

  void add_products(T* products) const {
    for (int64_t m = 0; m < vectors; ++m) {
      for (int64_t n = m; n < vectors; ++n, products += p.dim_x) add_product(vector(m), vector(n), products, p.dim_x);
    }
  }

  // ∂loss/∂a_h without V's part, in x, into `out` (H, out_stride).
  void gradient(T* out, int64_t out_stride) const {
    const T* weights = params.residual_weights;
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t j = 0; j < p.dim_x; j += kLanes<T>) {
        const Head<T> here(std::min<int64_t>(kLanes<T>, p.dim_x - j));
        Vec<T> sum{};
        for (int64_t m = 0; m < vectors; ++m) {
          sum = fma<T>(load(weights + (h * vectors + m) * p.dim_x + j, here), load(vector(m) + j, here), sum);
        }
        store(out + h * out_stride + j, sum, here);
      }
    }
  }
};

// Queries of a chunk of such prompts, and r_h for each.
template <class T>
struct ResidualChunk {
  const ResidualParams<T>& params;
  const StepPrompts<T>& p;
  T* normals;    // (chunk, d): ξ_q
  T* projected;  // (chunk, H, d): r, then ∂r

  ResidualChunk(const ResidualParams<T>& params, Pieces<T>& pieces) : params(params), p(params.prompts) {
    normals = pieces.take(kStepChunk * p.dim_x);
    projected = pieces.take(kStepChunk * p.heads * p.dim_x);
  }

  ChunkQueries<T> queries() const { return {p.dim_x, p.heads * p.dim_x, normals, p.dim_x}; }
  T* projected_of(int64_t n) const { return projected + n * p.heads * p.dim_x; }
  const T* query_of(int64_t n) const { return normals + n * p.dim_x; }

  void draw(int64_t first, int64_t count) const {
    for (int64_t n = 0; n < count; ++n) {
      elements<StandardNormals<T>>(normals + n * p.dim_x, p.dim_x, p.range.stream(first + n, philox::kPrompt), 0);
    }
    queries().project(params.projections, count, projected);
  }
};

// Adds a prompt's K, which follows the averages of its heads, to the sum.
template <class T>
void add_overlaps(const T* averages, int64_t stride, int64_t heads, T* sums) {
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t g = 0; g < heads; ++g) sums[h * heads + g] += averages[h * stride + g];
  }
}
