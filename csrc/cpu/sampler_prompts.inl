// Prompts from normals. Within a tile the tokens are the lanes of vectors: x = A ξ and y = βᵀx are matrix products with
// rows of 16 numbers, and the rows that the output wants come from a transposition at the end.

// Transposes a square of numbers by exchanging its quarters off the diagonal, then those of each quarter.
template <class T, int HALF = kLanes<T> / 2>
MHICL_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  const Rotation<T> up(kLanes<T> - HALF), down(HALF);
  VecBits<T> upper{};
  MHICL_UNROLL
  for (int i = 0; i < kLanes<T>; ++i) upper[i] = i & HALF ? -1 : 0;
  MHICL_UNROLL
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i & HALF) continue;
    const Vec<T> first = rows[i], second = rows[i + HALF];
    rows[i] = select<T>(upper, rotate<T>(second, up), first);
    rows[i + HALF] = select<T>(upper, second, rotate<T>(first, down));
  }
  if constexpr (HALF > 1) transpose<T, HALF / 2>(rows);
}

// kLanes tokens of at most as many columns, to the tokens' rows.
template <class T>
MHICL_INLINE void write_square(const T* columns, int64_t n_columns, T* rows, int64_t row_stride) {
  constexpr int lanes = kLanes<T>;
  if (n_columns <= lanes / 4) {
    for (int64_t i = 0; i < n_columns; ++i) {
      for (int token = 0; token < lanes; ++token) rows[token * row_stride + i] = columns[i * philox::kTile + token];
    }
    return;
  }
  const Head<T> head(n_columns);
  Vec<T> square[lanes];
  MHICL_UNROLL
  for (int i = 0; i < lanes; ++i) square[i] = load(columns + std::min<int64_t>(i, n_columns - 1) * philox::kTile);
  transpose<T>(square);
  MHICL_UNROLL
  for (int token = 0; token < lanes; ++token) {
    if (n_columns == lanes) store(rows + token * row_stride, square[token]);
    else store(rows + token * row_stride, square[token], head);
  }
}

// The columns of a tile, to its tokens' rows.
template <class T>
void write_rows(const T* tile, int64_t columns, T* rows, int64_t row_stride) {
  for (int64_t column = 0; column < columns; column += kLanes<T>) {
    const int64_t together = std::min<int64_t>(kLanes<T>, columns - column);
    for (int64_t token = 0; token < philox::kTile; token += kLanes<T>) {
      write_square(tile + column * philox::kTile + token, together, rows + token * row_stride + column, row_stride);
    }
  }
}

// Tokens that are drawn together: few enough for the first-level cache, and whole groups of the stream whatever their
// number of columns is, since four tiles are.
MHICL_INLINE int64_t chunk_tokens(int64_t context_length, int64_t columns) {
  constexpr int64_t elements = 4096;
  const int64_t tokens = std::max<int64_t>(1, elements / (philox::kGroup * columns)) * philox::kGroup;
  return std::min(tokens, philox::tiled_size(context_length, 1));
}

// x = A ξ for `width` tokens. Rows of the lower triangular A go in strips, which end at the diagonal.
template <class T>
void apply_factor(const MultiTaskParams<T>& p, const T* xi, T* x, int64_t width) {
  for (int64_t row = 0; row < p.dim_x; row += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, p.dim_x - row);
    gemm<T>({rows, width, row + rows, p.covariance_factor + row * p.dim_x, p.dim_x, false, xi, width, x + row * width,
             width, false});
  }
}

// y = βᵀx for `width` tokens, added to their scaled noises if those are there.
template <class T>
void label(const MultiTaskParams<T>& p, const T* beta, const T* x, T* y, int64_t width, bool noisy) {
  gemm<T>({p.n_tasks, width, p.dim_x, beta, p.dim_x, false, x, width, y, width, noisy});
}

template <class T>
MHICL_INLINE void scale(T* out, const T* numbers, int64_t count, T factor) {
  for (int64_t i = 0; i < count; ++i) out[i] = factor * numbers[i];
}

// What one thread keeps while it makes prompts. Finished rows wait in it for their tile to be complete: memory takes
// them fastest one after the other.
template <class T>
struct PromptScratch {
  const int64_t chunk, before_noise, noises;
  Workspace<T> memory;
  T *xi, *x, *rows, *numbers, *noise;

  explicit PromptScratch(const MultiTaskParams<T>& p)
      : chunk(chunk_tokens(p.context_length, p.dim_x + p.n_tasks)),
        before_noise(philox::first_context_noise(p.dim_x, p.n_tasks)),
        noises(chunk * p.n_tasks),
        memory(Workspace<T>::padded(chunk * p.dim_x) + Workspace<T>::padded(philox::kTile * p.dim_x) +
               Workspace<T>::padded(philox::kTile * (p.dim_x + p.n_tasks)) +
               Workspace<T>::padded(before_noise + noises)),
        xi(memory.take(chunk * p.dim_x)),
        x(memory.take(philox::kTile * p.dim_x)),
        rows(memory.take(philox::kTile * (p.dim_x + p.n_tasks))),
        numbers(memory.take(before_noise + noises)),
        noise(numbers + before_noise) {}
};

// The query, its target, and β in place of its normals, from the numbers that begin the prompt's stream.
template <class T>
void make_query(const MultiTaskParams<T>& p, int64_t prompt, T* numbers, bool noisy) {
  T* query = p.query + prompt * (p.dim_x + p.n_tasks);
  T* target = p.target + prompt * p.n_tasks;
  if (p.covariance_factor) apply_factor(p, numbers, query, 1);
  else std::copy_n(numbers, p.dim_x, query);
  std::fill_n(query + p.dim_x, p.n_tasks, T(0));
  T* beta = numbers + philox::first_coefficient(p.dim_x);
  for (int64_t i = 0; i < p.n_tasks * p.dim_x; ++i) beta[i] *= p.coefficient_scale[i];
  if (noisy) scale(target, numbers + philox::first_query_noise(p.dim_x, p.n_tasks), p.n_tasks, p.noise_std);
  label(p, beta, query, target, 1, noisy);
}

// The context's tokens from `first` on that were drawn into the scratch memory.
template <class T>
void make_context(const MultiTaskParams<T>& p, int64_t prompt, int64_t first, const PromptScratch<T>& scratch,
                  bool noisy) {
  const int64_t dim = p.dim_x + p.n_tasks, last = std::min(first + scratch.chunk, p.context_length);
  const T* beta = scratch.numbers + philox::first_coefficient(p.dim_x);
  if (noisy) scale(scratch.noise, scratch.noise, philox::tiled_size(last - first, p.n_tasks), p.noise_std);
  for (int64_t token = first; token < last; token += philox::kTile) {
    const T* x = scratch.xi + (token - first) * p.dim_x;
    if (p.covariance_factor) {
      apply_factor(p, x, scratch.x, philox::kTile);
      x = scratch.x;
    }
    T* y = scratch.noise + (token - first) * p.n_tasks;
    label(p, beta, x, y, philox::kTile, noisy);
    write_rows(x, p.dim_x, scratch.rows, dim);
    write_rows(y, p.n_tasks, scratch.rows + p.dim_x, dim);
    std::copy_n(scratch.rows, std::min<int64_t>(philox::kTile, last - token) * dim,
                p.context + (prompt * p.context_length + token) * dim);
  }
}

template <class T>
void sample_multi_task(const MultiTaskParams<T>& p, int64_t begin, int64_t end) {
  const PromptScratch<T> scratch(p);
  const bool noisy = p.noise_std > T(0);
  const int64_t without_noise = philox::first_query_noise(p.dim_x, p.n_tasks);
  Schedule context_stream(p.range.stream(begin, philox::kContext)), prompt_stream = context_stream;
  for (int64_t prompt = begin; prompt < end; ++prompt) {
    context_stream.turn_to(p.range.stream(prompt, philox::kContext));
    prompt_stream.turn_to(p.range.stream(prompt, philox::kPrompt));
    // The first chunk's noises come with the numbers before them.
    elements<StandardNormals<T>>(scratch.numbers, noisy ? scratch.before_noise + scratch.noises : without_noise,
                                 prompt_stream, 0);
    make_query(p, prompt, scratch.numbers, noisy && p.noisy_target);
    for (int64_t first = 0; first < p.context_length; first += scratch.chunk) {
      const int64_t tokens = std::min(scratch.chunk, p.context_length - first);
      elements<StandardNormals<T>>(scratch.xi, philox::tiled_size(tokens, p.dim_x), context_stream,
                                   philox::in_tiles(first, 0, p.dim_x));
      if (noisy && first > 0) {
        elements<StandardNormals<T>>(scratch.noise, philox::tiled_size(tokens, p.n_tasks), prompt_stream,
                                     scratch.before_noise + philox::in_tiles(first, 0, p.n_tasks));
      }
      make_context(p, prompt, first, scratch, noisy);
    }
  }
}

template <class T>
void sample_covariates(const CovariatesParams<T>& p, int64_t begin, int64_t end) {
  const int64_t chunk = chunk_tokens(p.context_length, p.dim_x);
  Workspace<T> memory(Workspace<T>::padded(chunk * p.dim_x) + Workspace<T>::padded(philox::kTile * p.dim_x));
  T* xi = memory.take(chunk * p.dim_x);
  T* rows = memory.take(philox::kTile * p.dim_x);
  for (int64_t prompt = begin; prompt < end; ++prompt) {
    const philox::Stream stream = p.range.stream(prompt, philox::kContext);
    elements<StandardNormals<T>>(p.xi_query + prompt * p.dim_x, p.dim_x, p.range.stream(prompt, philox::kPrompt), 0);
    for (int64_t first = 0; first < p.context_length; first += chunk) {
      const int64_t last = std::min(first + chunk, p.context_length);
      elements<StandardNormals<T>>(xi, philox::tiled_size(last - first, p.dim_x), stream,
                                   philox::in_tiles(first, 0, p.dim_x));
      for (int64_t token = first; token < last; token += philox::kTile) {
        write_rows(xi + (token - first) * p.dim_x, p.dim_x, rows, p.dim_x);
        std::copy_n(rows, std::min<int64_t>(philox::kTile, last - token) * p.dim_x,
                    p.xi + (prompt * p.context_length + token) * p.dim_x);
      }
    }
  }
}

template <class T>
constexpr SamplerKernels<T> sampler_kernels() {
  return {sample_multi_task<T>, sample_covariates<T>, elements<StandardNormals<T>>};
}
