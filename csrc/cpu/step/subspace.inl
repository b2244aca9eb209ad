// The fused step that draws only what the logits read. With an orthonormal basis Q (M rows of d numbers) of a space that
// holds every r_h, a token is x_l = Qᵀu_l + x_l⊥, and x⊥ ~ N(0, P), P = Id − QᵀQ, leaves the logits u_l·(Q r_h) alone. So u
// is drawn, and x⊥ is integrated out of the loss and of its gradient at fixed basis, both polynomials in x⊥. With
// m_h = Σ_l p_lh u_l, a_h = Qᵀm_h, τ_j = tr S̃_j P, S̃_j = AᵀS_jA, c and W as in SubspaceParams and ResidualParams:
//   products a_h·S̃_j a_g become a_h·S̃_j a_g + τ_j K_hg, and
//   ∂r_h = v_h + Qᵀ(α_h − Q v_h),   v_h = (1 − K_hh) g_h + Σ_j S̃_j Qᵀ y_hj,
//   α_h = Σ_l p_lh (u_l − m_h) [u_l·Q g_h + Σ_g (2 W_hg + Σ_j c_{j,hg} τ_j) p_lg],
//   y_hj = Σ_g c_{j,hg} Σ_l p_lh p_lg (u_l − m_h),
// g_h the conditional gradient in a_h. Each u serves twice, as itself and as −u, which cancels what is odd in it.

template <class T>
struct SubspacePrompt {
  const SubspaceParams<T>& params;
  const StepPrompts<T>& p;
  int64_t rank, d_stride, m_stride;  // M; rows of d and of M (+ H) numbers
  ResidualChunk<T> chunk;
  Residuals<T> residuals;
  PromptAttention<T> attention;
  T *basis, *basis_columns;  // Q (M, d_stride), its transpose (d, M)
  T *coordinates;            // (H, M): Q r_h
  T *averages;               // (H, m_stride): Σ_l p_lh u_l, then K
  T *panel;                  // (H, m_stride)
  T *means, *weighed;        // (H, M)
  T *direction;              // (H, d_stride): g_h, then v_h
  T *lifted;                 // (H, d_stride)
  T *overlap_weights;        // (H, H)
  T* outside;                // (I): τ_j
  T *products, *pair_moments;  // a block of a row for each pair of heads, and Σ_l of each times u (pairs, M)
  T* centred_pairs;          // (H, H, M): n_hg

  SubspacePrompt(const SubspaceParams<T>& params, Pieces<T>& pieces)
      : params(params),
        p(params.residual.prompts),
        rank(std::min(p.heads, p.dim_x)),
        d_stride(padded<T>(p.dim_x)),
        m_stride(padded<T>(rank + p.heads)),
        chunk(params.residual, pieces),
        residuals(params.residual, pieces),
        attention(p.context_length, rank, p.heads, pieces) {
    basis = pieces.take(rank * d_stride);
    basis_columns = pieces.take(p.dim_x * rank);
    coordinates = pieces.take(p.heads * rank);
    averages = pieces.take(p.heads * m_stride);
    panel = pieces.take(p.heads * m_stride);
    means = pieces.take(p.heads * rank);
    weighed = pieces.take(p.heads * rank);
    direction = pieces.take(p.heads * d_stride);
    lifted = pieces.take(p.heads * d_stride);
    overlap_weights = pieces.take(p.heads * p.heads);
    outside = pieces.take(p.tasks);
    const int64_t kept = params.isotropic ? 0 : pairs();
    products = pieces.take(attention.tiles.count * kept * kTile);
    pair_moments = pieces.take(kept * rank);
    centred_pairs = pieces.take(params.isotropic ? 0 : p.heads * p.heads * rank);
  }

  // Gram–Schmidt in the heads' order. What is left of a head beside those before it counts by the head's own length, so
  // that small heads keep their direction; less than rounding is dropped, and a row of zeros stands for nothing. Twice,
  // since dividing by a small rest magnifies the rounding of the first time.
  void find_basis(const T* r) const {
    constexpr T negligible = std::is_same_v<T, float> ? T(1e-6) : T(1e-14);
    std::fill_n(basis, rank * d_stride, T(0));
    int64_t found = 0;
    for (int64_t h = 0; h < p.heads && found < rank; ++h) {
      T* v = basis + found * d_stride;
      std::copy_n(r + h * p.dim_x, p.dim_x, v);
      // The largest entry first: squares neither over- nor underflow then. Below the normal numbers its inverse would.
      const T largest = largest_magnitude(v, p.dim_x);
      bool kept = largest >= std::numeric_limits<T>::min() && std::isfinite(largest);
      if (kept) {
        scale_by(T(1) / largest, v, p.dim_x);
        kept = normalise(v, T(0)) && orthogonalise(v, found, negligible) && orthogonalise(v, found, T(0));
      }
      if (kept) ++found;
      else std::fill_n(v, p.dim_x, T(0));
    }
    for (int64_t k = 0; k < rank; ++k) {
      for (int64_t c = 0; c < p.dim_x; ++c) basis_columns[c * rank + k] = basis[k * d_stride + c];
    }
  }

  // False, and v is left as it is, where the length is not above `negligible`, or not a number.
  bool normalise(T* v, T negligible) const {
    const T length = std::sqrt(inner(v, v, p.dim_x));
    if (!(length > negligible)) return false;
    scale_by(T(1) / length, v, p.dim_x);
    return true;
  }

  // v − Σ_k (q_k·v) q_k over the first `found` rows, to unit length.
  bool orthogonalise(T* v, int64_t found, T negligible) const {
    if (found == 0) return true;
    T* const products = means;  // not in use yet
    for (int64_t k = 0; k < found; ++k) products[k] = inner(basis + k * d_stride, v, p.dim_x);
    for (int64_t k = 0; k < found; ++k) add_scaled(-products[k], basis + k * d_stride, v, p.dim_x);
    return normalise(v, negligible);
  }

  // Q v for every head's row v.
  void project(const T* rows, int64_t stride, T* out) const {
    gemm<T>({.rows = p.heads, .cols = rank, .depth = p.dim_x, .a = rows, .a_stride = stride, .unit_rows = false,
             .b = basis_columns, .b_stride = rank, .c = out, .c_stride = rank, .accumulate = false});
  }
  // Qᵀ m for every head's row m, or added.
  void lift(const T* rows, T* out, int64_t stride, bool accumulate) const {
    gemm<T>({.rows = p.heads, .cols = p.dim_x, .depth = rank, .a = rows, .a_stride = rank, .unit_rows = false,
             .b = basis, .b_stride = d_stride, .c = out, .c_stride = stride, .accumulate = accumulate});
  }

  // τ_j, and 2 W_hg + Σ_j c_{j,hg} τ_j.
  void weigh_outside() const {
    const ResidualParams<T>& residual = params.residual;
    std::copy_n(params.support_sizes, p.tasks, outside);
    for (int64_t k = 0; k < rank; ++k) {
      const T* q = basis + k * d_stride;
      if (residual.covariance_factor) {
        residuals.multiply(q, d_stride, residual.covariance_factor_transposed, 1, lifted, d_stride);
        q = lifted;
      }
      for (int64_t j = 0; j < p.tasks; ++j) outside[j] -= weighted_square(params.support + j * p.dim_x, q);
    }
    if (residual.overlap_weights) std::copy_n(residual.overlap_weights, p.heads * p.heads, overlap_weights);
    else std::fill_n(overlap_weights, p.heads * p.heads, T(0));
    for (int64_t j = 0; j < p.tasks; ++j) {
      add_scaled(outside[j], params.label_products + j * p.heads * p.heads, overlap_weights, p.heads * p.heads);
    }
  }

  // Σ_c w_c q_c².
  T weighted_square(const T* w, const T* q) const {
    Vec<T> sum{};
    for (int64_t c = 0; c < p.dim_x; c += kLanes<T>) {
      const Head<T> here(std::min<int64_t>(kLanes<T>, p.dim_x - c));
      const Vec<T> x = load(q + c, here);
      sum = fma<T>(load(w + c, here) * x, x, sum);
    }
    return sum_by_head<T>(sum, 1)[0];
  }

  // n_hg = Σ_l p_lh p_lg (u_l − m_h) from the products of probabilities, which are symmetric; of the context ±u.
  void weigh_pairs(T sign) const {
    moments_of_products();
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t g = 0; g < p.heads; ++g) {
        const int64_t pair = h <= g ? pair_of(h, g) : pair_of(g, h);
        const T overlap = averages[h * m_stride + rank + g];
        T* n = centred_pairs + (h * p.heads + g) * rank;
        for (int64_t k = 0; k < rank; ++k) {
          n[k] = sign * (pair_moments[pair * rank + k] - overlap * averages[h * m_stride + k]);
        }
      }
    }
  }

  int64_t pair_of(int64_t h, int64_t g) const { return h * p.heads - h * (h - 1) / 2 + g - h; }
  int64_t pairs() const { return p.heads * (p.heads + 1) / 2; }

  // Σ_l p_lh p_lg u_l of every pair h ≤ g.
  void moments_of_products() const {
    const HeadRows<T> rows = attention.probability_rows();
    const int64_t vectors = attention.tiles.count * kRowVectors<T>;
    const HeadRows<T> out = {products, pairs()};
    for (int64_t i = 0; i < vectors; ++i) {
      const T* probability = rows.at(i);
      T* product = out.at(i);
      for (int64_t h = 0; h < p.heads; ++h) {
        const Vec<T> left = load(probability + h * kTile);
        for (int64_t g = h; g < p.heads; ++g, product += kTile) store(product, left * load(probability + g * kTile));
      }
    }
    moments_of_tiles<T>({.weights = products, .weights_width = pairs(), .rows = pairs(), .in = attention.block,
                         .in_width = attention.width, .cols = rank, .tiles = attention.tiles.count,
                         .out = pair_moments, .out_stride = rank});
  }

  // v_h += Σ_j S̃_j Qᵀ y_hj, y_hj = Σ_g c_{j,hg} n_hg.
  void add_out_of_plane(T sign) const {
    weigh_pairs(sign);
    for (int64_t j = 0; j < p.tasks; ++j) {
      for (int64_t h = 0; h < p.heads; ++h) {
        gemm<T>({.rows = 1, .cols = rank, .depth = p.heads, .a = params.label_products + (j * p.heads + h) * p.heads,
                 .a_stride = p.heads, .unit_rows = false, .b = centred_pairs + h * p.heads * rank, .b_stride = rank,
                 .c = weighed + h * rank, .c_stride = rank, .accumulate = false});
      }
      add_restricted(params.support + j * p.dim_x);
    }
  }

  // v_h += S̃ Qᵀ y_h for the rows y_h of `weighed`, S the mask.
  void add_restricted(const T* mask) const {
    lift(weighed, lifted, d_stride, false);
    if (params.residual.covariance_factor == nullptr) {
      for (int64_t h = 0; h < p.heads; ++h) add_product(mask, lifted + h * d_stride, direction + h * d_stride, p.dim_x);
      return;
    }
    for (int64_t h = 0; h < p.heads; ++h) {
      T* row = lifted + h * d_stride;
      residuals.multiply(row, d_stride, params.residual.covariance_factor_transposed, 1, residuals.scratch, d_stride);
      for (int64_t c = 0; c < p.dim_x; ++c) row[c] = mask[c] * residuals.scratch[c];
    }
    residuals.to_whitened(lifted, d_stride, p.heads);
    for (int64_t h = 0; h < p.heads; ++h) add_scaled(T(1), lifted + h * d_stride, direction + h * d_stride, p.dim_x);
  }

  // The context sign · u: its share of the sums but for the projections', and ∂r, added to `grad` (H, d).
  void step(T sign, const SubspaceSums<T>& sums, T* grad) const {
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t k = 0; k < rank; ++k) panel[h * m_stride + k] = sign * coordinates[h * rank + k];
    }
    attention.attend(panel, m_stride, rank);
    attention.average(rank + p.heads, averages, m_stride);
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t k = 0; k < rank; ++k) means[h * rank + k] = sign * averages[h * m_stride + k];
    }
    lift(means, residuals.whitened + residuals.stride, residuals.stride, false);
    residuals.to_x();
    residuals.add_products(sums.residual.products);
    if (params.residual.overlap_weights) add_overlaps(averages + rank, m_stride, p.heads, sums.residual.overlaps);
    for (int64_t j = 0; j < p.tasks; ++j) {
      for (int64_t h = 0; h < p.heads; ++h) {
        add_scaled(outside[j], averages + h * m_stride + rank, sums.outside + (j * p.heads + h) * p.heads, p.heads);
      }
    }
    differentiate(sign, grad);
  }

  void differentiate(T sign, T* grad) const {
    residuals.gradient(direction, d_stride);
    residuals.to_whitened(direction, d_stride, p.heads);
    project(direction, d_stride, weighed);
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t k = 0; k < rank; ++k) panel[h * m_stride + k] = sign * weighed[h * rank + k];
      std::copy_n(overlap_weights + h * p.heads, p.heads, panel + h * m_stride + rank);
    }
    attention.differentiate(panel, m_stride, 0, rank + p.heads);
    attention.weigh(rank, means, rank);  // ±α_h
    const T all = T(p.context_length > 0);  // Σ_l p_lh
    for (int64_t h = 0; h < p.heads; ++h) {
      const T free = all - averages[h * m_stride + rank + h];
      for (int64_t c = 0; c < p.dim_x; ++c) direction[h * d_stride + c] *= free;
    }
    if (!params.isotropic) add_out_of_plane(sign);
    project(direction, d_stride, weighed);
    for (int64_t at = 0; at < p.heads * rank; ++at) weighed[at] = sign * means[at] - weighed[at];
    for (int64_t h = 0; h < p.heads; ++h) add_scaled(T(1), direction + h * d_stride, grad + h * p.dim_x, p.dim_x);
    lift(weighed, grad, p.dim_x, true);
  }

  // Both signs of prompt's context; leaves ∂r in place n of the chunk.
  void step(int64_t prompt, int64_t n, const SubspaceSums<T>& sums) const {
    T* r = chunk.projected_of(n);
    find_basis(r);
    project(r, p.dim_x, coordinates);
    weigh_outside();
    std::copy_n(chunk.query_of(n), p.dim_x, residuals.whitened);
    fill_tiles<T>(p.range.stream(prompt, philox::kContext), 0, rank, attention.tiles.count, attention.block,
                  attention.width);
    std::fill_n(r, p.heads * p.dim_x, T(0));
    step(T(1), sums, r);
    step(T(-1), sums, r);
  }
};

template <class T>
int64_t subspace_workspace(const SubspaceParams<T>& params) {
  Pieces<T> pieces(nullptr);
  const SubspacePrompt<T> layout(params, pieces);
  return pieces.taken();
}

template <class T>
void subspace_step(const SubspaceParams<T>& params, int64_t begin, int64_t end, T* workspace, T* out, double* loss) {
  Pieces<T> pieces(workspace);
  const SubspacePrompt<T> prompt(params, pieces);
  const SubspaceSums<T> sums(params, out);
  std::fill_n(out, SubspaceSums<T>::size(params), T(0));
  *loss = 0;
  for (int64_t first = begin; first < end; first += kStepChunk) {
    const int64_t count = std::min(kStepChunk, end - first);
    prompt.chunk.draw(first, count);
    for (int64_t n = 0; n < count; ++n) prompt.step(first + n, n, sums);
    prompt.chunk.queries().add_gradient(prompt.chunk.projected, count, sums.residual.projections, true);
  }
}
