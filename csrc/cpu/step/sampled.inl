// The fused step of drawn prompts. Labels are never formed: y_l = βᵀξ_l + σ ε_l, so a vector v that multiplies a token
// (ξ, y) multiplies (ξ, ε) as its fold (v_x + Σ_i v_y[i] β_i, σ v_y), and averages of tokens are unfolded likewise. With
// a covariance, β stands for Aᵀβ.

template <class T>
struct SampledPrompt {
  const SampledParams<T>& params;
  const StepPrompts<T>& p;
  int64_t dim, rows, noise_base, numbers, beta_stride, panel_stride;
  PromptAttention<T> attention;
  T *normals;    // (chunk, numbers): the PROMPT stream's beginning
  T *projected;  // (chunk, H, D): r, then ∂r
  T *averages;   // (chunk, H, D): c
  T *errors;     // (chunk, I): 2 (ŷ − y_q)
  T *beta, *unscaled, *panel, *moments, *direction;

  SampledPrompt(const SampledParams<T>& params, Pieces<T>& pieces)
      : params(params),
        p(params.prompts),
        dim(p.dim_x + p.tasks),
        rows(p.dim_x + (p.noise_std > T(0) ? p.tasks : 0)),
        noise_base(philox::first_context_noise(p.dim_x, p.tasks)),
        numbers(count_numbers()),
        beta_stride(padded<T>(p.dim_x)),
        panel_stride(padded<T>(rows)),
        attention(p.context_length, rows, p.heads, pieces) {
    normals = pieces.take(kStepChunk * numbers);
    projected = pieces.take(kStepChunk * p.heads * dim);
    averages = pieces.take(kStepChunk * p.heads * dim);
    errors = pieces.take(kStepChunk * p.tasks);
    beta = pieces.take(p.tasks * beta_stride);
    unscaled = pieces.take(p.tasks * p.dim_x);
    panel = pieces.take(p.heads * panel_stride);
    moments = pieces.take(p.heads * panel_stride);
    direction = pieces.take(p.heads * dim);
  }

  bool draws_target_noise() const { return p.noisy_target && p.noise_std > T(0); }

  // How much of the PROMPT stream is drawn for all prompts of a chunk: what stands before the context's noise, and where
  // that is short the noise too, which begins within the same groups.
  int64_t count_numbers() const {
    constexpr int64_t few = 512;
    const int64_t noise = rows > p.dim_x ? philox::tiled_size(p.context_length, p.tasks) : 0;
    if (noise > 0 && noise_base + noise <= few) return noise_base + noise;
    return p.dim_x * (1 + p.tasks) + (draws_target_noise() ? p.tasks : 0);
  }
  ChunkQueries<T> queries() const { return {p.dim_x, p.heads * dim, normals, numbers}; }

  void draw_chunk(int64_t first, int64_t count) {
    for (int64_t n = 0; n < count; ++n) {
      elements<StandardNormals<T>>(normals + n * numbers, numbers, p.range.stream(first + n, philox::kPrompt), 0);
    }
    queries().project(params.projections, count, projected);
  }

  void draw_context(int64_t prompt, const T* drawn) {
    const int64_t tiles = attention.tiles.count;
    fill_tiles<T>(p.range.stream(prompt, philox::kContext), 0, p.dim_x, tiles, attention.block, attention.width);
    if (rows == p.dim_x) return;
    T* const noise = attention.block + p.dim_x * kTile;
    if (numbers > noise_base) {
      TileWriter<T>{noise, p.tasks, attention.width}.write(drawn + noise_base, p.tasks * tiles);
    } else {
      fill_tiles<T>(p.range.stream(prompt, philox::kPrompt), noise_base / kTile, p.tasks, tiles, noise, attention.width);
    }
  }

  void make_coefficients(const T* standard) {
    T* const scaled = params.covariance_factor ? unscaled : beta;
    const int64_t stride = params.covariance_factor ? p.dim_x : beta_stride;
    for (int64_t i = 0; i < p.tasks; ++i) {
      for (int64_t j = 0; j < p.dim_x; ++j) {
        scaled[i * stride + j] = params.coefficient_scale[i * p.dim_x + j] * standard[i * p.dim_x + j];
      }
    }
    if (params.covariance_factor == nullptr) return;
    gemm<T>({.rows = p.tasks, .cols = p.dim_x, .depth = p.dim_x, .a = unscaled, .a_stride = p.dim_x, .unit_rows = false,
             .b = params.covariance_factor, .b_stride = p.dim_x, .c = beta, .c_stride = beta_stride,
             .accumulate = false});
  }

  // v (H, D) -> panel (H, rows).
  void fold(const T* v) const {
    for (int64_t h = 0; h < p.heads; ++h, v += dim) {
      T* out = panel + h * panel_stride;
      for (int64_t j = 0; j < p.dim_x; j += kLanes<T>) {
        const Head<T> here(std::min<int64_t>(kLanes<T>, p.dim_x - j));
        Vec<T> sum = load(v + j, here);
        for (int64_t i = 0; i < p.tasks; ++i) {
          sum = fma<T>(broadcast<T>(v[p.dim_x + i]), load(beta + i * beta_stride + j, here), sum);
        }
        store(out + j, sum, here);
      }
      for (int64_t i = p.dim_x; i < rows; ++i) out[i] = p.noise_std * v[i];
    }
  }

  // moments (H, rows) -> out (H, D).
  void unfold(T* out) const {
    for (int64_t h = 0; h < p.heads; ++h, out += dim) {
      const T* m = moments + h * panel_stride;
      std::copy_n(m, p.dim_x, out);
      for (int64_t i = 0; i < p.tasks; ++i) {
        out[p.dim_x + i] = inner(beta + i * beta_stride, m, p.dim_x);
        if (rows > p.dim_x) out[p.dim_x + i] += p.noise_std * m[p.dim_x + i];
      }
    }
  }

  // One prompt's squared error; leaves 2 (ŷ − y_q), c and ∂r in place n of the chunk.
  T step(int64_t prompt, int64_t n) {
    const int64_t row = p.heads * dim;
    const T* drawn = normals + n * numbers;
    T *r = projected + n * row, *c = averages + n * row, *error = errors + n * p.tasks;
    make_coefficients(drawn + p.dim_x);
    draw_context(prompt, drawn);
    fold(r);
    attention.attend(panel, panel_stride, rows);
    attention.average(rows, moments, panel_stride);
    unfold(c);
    T loss = 0;
    std::fill_n(direction, row, T(0));
    for (int64_t i = 0; i < p.tasks; ++i) {
      T target = inner(beta + i * beta_stride, drawn, p.dim_x);
      if (draws_target_noise()) target += p.noise_std * drawn[p.dim_x * (1 + p.tasks) + i];
      const T* output = params.outputs + i * row;
      const T residual = inner(output, c, row) - target;
      loss += residual * residual;
      error[i] = T(2) * residual;
      add_scaled(error[i], output, direction, row);
    }
    fold(direction);
    attention.differentiate(panel, panel_stride, 0, rows);
    attention.weigh(rows, moments, panel_stride);
    unfold(r);
    return loss;
  }
};

template <class T>
int64_t sampled_workspace(const SampledParams<T>& params) {
  Pieces<T> pieces(nullptr);
  const SampledPrompt<T> layout(params, pieces);
  return pieces.taken();
}

template <class T>
void sampled_step(const SampledParams<T>& params, int64_t begin, int64_t end, T* workspace, T* out, double* loss) {
  Pieces<T> pieces(workspace);
  SampledPrompt<T> prompt(params, pieces);
  const StepPrompts<T>& p = params.prompts;
  const SampledSums<T> sums(p, out);
  const int64_t row = p.heads * prompt.dim;
  *loss = 0;
  for (int64_t first = begin; first < end; first += kStepChunk) {
    const int64_t count = std::min(kStepChunk, end - first);
    prompt.draw_chunk(first, count);
    for (int64_t n = 0; n < count; ++n) *loss += double(prompt.step(first + n, n));
    prompt.queries().add_gradient(prompt.projected, count, sums.projections, first > begin);
    gemm<T>({.rows = p.tasks, .cols = row, .depth = count, .a = prompt.errors, .a_stride = p.tasks, .unit_rows = true,
             .b = prompt.averages, .b_stride = row, .c = sums.outputs, .c_stride = row, .accumulate = first > begin});
  }
}
