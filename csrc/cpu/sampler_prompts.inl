// Prompts from normals. A row of covariates is read in whole vectors, past its end into what follows: there the
// other factor is a padding zero, and what follows is always finite.

template <class T>
MHICL_INLINE int64_t padded(int64_t count) {
  return (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// The sum of a vector's lanes, by halves.
template <class T, int LANES>
struct LaneSum {
  typedef T Whole __attribute__((vector_size(LANES * sizeof(T))));
  typedef T Half __attribute__((vector_size(LANES / 2 * sizeof(T))));

  static MHICL_INLINE T of(Whole v) {
    if constexpr (LANES == 2) {
      return v[0] + v[1];
    } else {
      Half half[2];
      std::memcpy(half, &v, sizeof v);
      return LaneSum<T, LANES / 2>::of(half[0] + half[1]);
    }
  }
};

// Σ_j a_j b_j over whole vectors, in an order that depends on nothing but their number.
template <class T>
MHICL_INLINE T dot(const T* a, const T* b, int64_t padded_count) {
  Vec<T> sum{};
  for (int64_t j = 0; j < padded_count; j += kLanes<T>) sum = fma<T>(load(a + j), load(b + j), sum);
  return LaneSum<T, kLanes<T>>::of(sum);
}

template <class T>
MHICL_INLINE void copy_row(T* to, const T* from, int64_t count) {
  int64_t j = 0;
  for (; j + kLanes<T> <= count; j += kLanes<T>) store(to + j, load(from + j));
  store(to + j, load(from + j), Head<T>(count - j));
}

inline constexpr int kTokensTogether = 4;

// What one thread keeps while it makes prompts. Tokens go through it a tile at a time, the query as token 0.
template <class T>
struct PromptTile {
  int64_t row, tokens;  // length of a padded row; tokens a tile
  int64_t factor, beta, xi, x, labels, size;  // where each part of the workspace begins, and where it ends

  explicit PromptTile(const MultiTaskParams<T>& p) {
    constexpr int64_t tile_elements = 4096;  // with the rows of the output, within the first-level cache
    row = padded<T>(p.dim_x);
    // Whole groups of the stream, whatever dim_x is.
    tokens = std::max<int64_t>(1, tile_elements / (philox::kGroup * p.dim_x)) * philox::kGroup;
    tokens = std::min(tokens, p.context_length + 1);
    factor = 0;
    beta = factor + (p.covariance_factor ? p.dim_x * row : 0);
    xi = beta + p.n_tasks * row;
    x = xi + (tokens + kTokensTogether) * p.dim_x + kLanes<T>;
    labels = x + (p.covariance_factor ? tokens * p.dim_x + kLanes<T> : 0);
    size = labels + (p.dim_x + tokens) * p.n_tasks;
  }
};

// Aᵀ with padded rows, so that x = A ξ is a sum of its rows.
template <class T>
void transpose_factor(const MultiTaskParams<T>& p, const PromptTile<T>& tile, T* transposed) {
  for (int64_t k = 0; k < p.dim_x; ++k) {
    for (int64_t j = 0; j < p.dim_x; ++j) transposed[k * tile.row + j] = p.covariance_factor[j * p.dim_x + k];
  }
}

// x = A ξ for each token, summed over k in ascending order; A is lower triangular. Tokens go in fours, for which ξ has
// room: each is its own sum, so what the last four hold past the end does no harm.
template <class T>
void apply_factor(const T* transposed, const T* xi, T* x, int64_t tokens, int64_t dim_x, int64_t row) {
  constexpr int together = kTokensTogether;
  for (int64_t token = 0; token < tokens; token += together) {
    const T* source = xi + token * dim_x;
    const int64_t present = std::min<int64_t>(together, tokens - token);
    for (int64_t j = 0; j < dim_x; j += kLanes<T>) {
      const int64_t last = std::min<int64_t>(dim_x, j + kLanes<T>);
      Vec<T> sum[together]{};
      for (int64_t k = 0; k < last; ++k) {
        const Vec<T> column = load(transposed + k * row + j);
        for (int r = 0; r < together; ++r) sum[r] = fma<T>(broadcast<T>(source[r * dim_x + k]), column, sum[r]);
      }
      for (int64_t r = 0; r < present; ++r) store(x + (token + r) * dim_x + j, sum[r], Head<T>(last - j));
    }
  }
}

// β from its standard normals, task by task in padded rows.
template <class T>
void scale_coefficients(const MultiTaskParams<T>& p, const T* standard, T* beta, int64_t padded_row) {
  for (int64_t i = 0; i < p.n_tasks; ++i) {
    for (int64_t j = 0; j < p.dim_x; ++j) {
      beta[i * padded_row + j] = p.coefficient_scale[i * p.dim_x + j] * standard[i * p.dim_x + j];
    }
  }
}

// Tokens [first, first + tokens) of a prompt, from their covariates and noises (null: no noise).
template <class T>
void write_tokens(const MultiTaskParams<T>& p, int64_t prompt, int64_t first, int64_t tokens, const T* x, const T* beta,
                  const T* noise, int64_t padded_row) {
  const int64_t dim = p.dim_x + p.n_tasks;
  for (int64_t token = first; token < first + tokens; ++token) {
    const bool is_query = token == 0;
    T* row = is_query ? p.query + prompt * dim : p.context + (prompt * p.context_length + token - 1) * dim;
    T* labels = is_query ? p.target + prompt * p.n_tasks : row + p.dim_x;
    const T* covariates = x + (token - first) * p.dim_x;
    copy_row(row, covariates, p.dim_x);
    if (is_query) std::fill_n(row + p.dim_x, p.n_tasks, T(0));
    const bool noisy = noise != nullptr && (!is_query || p.noisy_target);
    for (int64_t i = 0; i < p.n_tasks; ++i) {
      labels[i] = dot(beta + i * padded_row, covariates, padded_row);
      if (noisy) labels[i] += p.noise_std * noise[(token - first) * p.n_tasks + i];
    }
  }
}

// Elements that sample_multi_task needs.
template <class T>
int64_t multi_task_workspace(const MultiTaskParams<T>& p) {
  return PromptTile<T>(p).size;
}

// The workspace must hold zeros.
template <class T>
void sample_multi_task(const MultiTaskParams<T>& p, int64_t begin, int64_t end, T* workspace) {
  const PromptTile<T> tile(p);
  T* beta = workspace + tile.beta;
  T* xi = workspace + tile.xi;
  T* x = p.covariance_factor ? workspace + tile.x : xi;
  T* labels = workspace + tile.labels;
  const int64_t n_coefficients = p.dim_x * p.n_tasks;
  const bool noisy = p.noise_std > T(0);
  if (p.covariance_factor) transpose_factor(p, tile, workspace + tile.factor);
  for (int64_t prompt = begin; prompt < end; ++prompt) {
    const philox::Stream covariate_stream = p.range.stream(prompt, philox::kCovariates);
    const philox::Stream label_stream = p.range.stream(prompt, philox::kLabels);
    for (int64_t first = 0; first <= p.context_length; first += tile.tokens) {
      const int64_t tokens = std::min(tile.tokens, p.context_length + 1 - first);
      elements<StandardNormals<T>>(xi, tokens * p.dim_x, covariate_stream, first * p.dim_x);
      if (p.covariance_factor) apply_factor(workspace + tile.factor, xi, x, tokens, p.dim_x, tile.row);
      // The coefficients stand before all noise, and are drawn with the first tile's.
      const int64_t begin_noise = n_coefficients + first * p.n_tasks;
      const int64_t begin_labels = first == 0 ? 0 : begin_noise;
      const int64_t end_labels = begin_noise + (noisy ? tokens * p.n_tasks : 0);
      elements<StandardNormals<T>>(labels, end_labels - begin_labels, label_stream, begin_labels);
      if (first == 0) scale_coefficients(p, labels, beta, tile.row);
      const T* noise = noisy ? labels + (begin_noise - begin_labels) : nullptr;
      write_tokens(p, prompt, first, tokens, x, beta, noise, tile.row);
    }
  }
}

template <class T>
void sample_covariates(const CovariatesParams<T>& p, int64_t begin, int64_t end) {
  for (int64_t prompt = begin; prompt < end; ++prompt) {
    const philox::Stream stream = p.range.stream(prompt, philox::kCovariates);
    const int64_t of_context = p.context_length * p.dim_x;
    elements<StandardNormals<T>>(p.xi_query + prompt * p.dim_x, p.dim_x, stream, 0);
    elements<StandardNormals<T>>(p.xi + prompt * of_context, of_context, stream, p.dim_x);
  }
}

template <class T>
constexpr SamplerKernels<T> sampler_kernels() {
  return {sample_multi_task<T>, multi_task_workspace<T>, sample_covariates<T>, elements<StandardNormals<T>>};
}
