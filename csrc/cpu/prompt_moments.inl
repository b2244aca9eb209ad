// Attention moments of a range of prompts, and their gradient. Each prompt's context is read into cache once and every
// pass over it happens there; nothing of the size of the context is stored.
//
// A prompt's projected queries r_h = KQ_h z_q come from one product for a chunk of prompts. Tables of logits,
// probabilities and their gradients have one row a position and one column a head of the block (see softmax.inl).

// Prompts whose projected queries are computed together, so that the weights are read once for all of them.
inline constexpr int64_t kChunk = 16;

// Tables and projected queries of the prompts of one chunk.
template <class T>
struct ChunkState {
  const PromptParams<T>& p;
  const int64_t directions;
  const int64_t table;  // elements from one table to the next
  Workspace<T> workspace;
  GroupRotations<T> rotations;
  T* query_columns;  // (D, chunk)
  T* projected;      // (blocks, chunk, D, width): r
  T* panels;         // (blocks, D, 1 + directions, width): r of one prompt, and the directions
  T* stage;          // (L, D), or null
  T* probabilities;  // (blocks, table)
  T* gradients;      // (blocks, directions, table)
  int64_t first = 0, count = 0;  // the chunk's prompts

  ChunkState(const PromptParams<T>& p, int64_t directions, int64_t extra)
      : p(p),
        directions(directions),
        table(Workspace<T>::padded(p.context_length * p.width)),
        workspace(size(p, directions, table) + extra),
        rotations(p.width) {
    query_columns = workspace.take(p.dim * kChunk);
    projected = workspace.take(p.blocks * kChunk * p.dim * p.width);
    panels = workspace.take(p.blocks * panel_size());
    stage = needs_stage(p) ? workspace.take(p.context_length * p.dim) : nullptr;
    probabilities = workspace.take(p.blocks * table);
    gradients = workspace.take(p.blocks * directions * table);
  }

  static int64_t size(const PromptParams<T>& p, int64_t directions, int64_t table) {
    const auto padded = Workspace<T>::padded;
    return padded(p.dim * kChunk) + padded(p.blocks * kChunk * p.dim * p.width) +
           padded(p.blocks * (1 + directions) * p.dim * p.width) + (needs_stage(p) ? padded(p.context_length * p.dim) : 0) +
           padded(p.blocks * table) + padded(p.blocks * directions * table);
  }

  int64_t heads_in(int64_t block) const {
    const int64_t left = p.heads - block * p.width;
    return left < p.width ? left : p.width;
  }
  T* probabilities_of(int64_t block) const { return probabilities + block * table; }
  T* gradients_of(int64_t block, int64_t direction = 0) const {
    return gradients + (block * directions + direction) * table;
  }
  const T* projected_of(int64_t block, int64_t n) const {
    return projected + (block * kChunk + n - first) * p.dim * p.width;
  }

  // r_h = KQ_h z_q for prompts [begin, end).
  void project(int64_t begin, int64_t end) {
    first = begin;
    count = end - begin;
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t d = 0; d < p.dim; ++d) query_columns[d * kChunk + n] = p.query[(begin + n) * p.dim + d];
    }
    const int64_t row = p.dim * p.width;
    for (int64_t block = 0; block < p.blocks; ++block) {
      gemm<T>({.rows = count, .cols = row, .depth = p.dim, .a = query_columns, .a_stride = kChunk, .unit_rows = true,
               .b = p.packed_kq + block * p.dim * row, .b_stride = row, .c = projected + block * kChunk * row,
               .c_stride = row, .accumulate = false});
    }
  }

  int64_t panel_size() const { return p.dim * (1 + directions) * p.width; }

  // Directions that are the same for all prompts, (blocks, D, directions, width), into the panels.
  void fill_directions(const T* packed) {
    const int64_t row = directions * p.width;
    for (int64_t i = 0; i < p.blocks * p.dim; ++i) {
      std::memcpy(panels + i * (row + p.width) + p.width, packed + i * row, size_t(row) * sizeof(T));
    }
  }

  // One prompt's own (first) direction, each head's a row.
  void fill_direction(int64_t block, const T* rows) {
    T* panel = panels + block * panel_size() + p.width;
    for (int64_t h = 0; h < heads_in(block); ++h) {
      for (int64_t d = 0; d < p.dim; ++d) panel[d * (1 + directions) * p.width + h] = rows[h * p.dim + d];
    }
  }

  // r of one prompt into the panel that holds the directions; without any, where it stands is the panel.
  const T* panel(int64_t block, int64_t n) {
    const T* r = projected_of(block, n);
    if (directions == 0) return r;
    T* out = panels + block * panel_size();
    const Head<T> head(p.width);
    for (int64_t d = 0; d < p.dim; ++d) store(out + d * (1 + directions) * p.width, load(r + d * p.width), head);
    return out;
  }

  // Probabilities of one block, and beside them their gradients before the softmax, z_l·v_h.
  void attend(const Rows<T>& z, int64_t block, int64_t n) {
    const Tables<T> tables = {probabilities_of(block), gradients_of(block), table, 1 + directions, p.width};
    scores<T>(z, p.dim, panel(block, n), tables, rotations.by);
    softmax<T>(tables.probabilities, table_vectors<T>(z.count, p.width), p.width);
  }

  // From ∂p to ∂s.
  void differentiate_softmax(const Rows<T>& z, int64_t block, int64_t direction = 0) {
    softmax_backward<T>(probabilities_of(block), gradients_of(block, direction), table_vectors<T>(z.count, p.width),
                        p.width);
  }

  // out_h = Σ_l table_lh z_l for the heads of a block.
  void weigh(const Rows<T>& z, int64_t block, const T* weights, T* out) {
    gemm<T>({.rows = heads_in(block), .cols = p.dim, .depth = z.count, .a = weights, .a_stride = p.width,
             .unit_rows = true, .b = z.data, .b_stride = z.stride, .c = out + block * p.width * p.dim,
             .c_stride = p.dim, .accumulate = false});
  }
};

// K_hg = Σ_l p_lh p_lg, block by block.
template <class T>
void overlap(const ChunkState<T>& state, const Rows<T>& z, T* out) {
  const PromptParams<T>& p = state.p;
  for (int64_t h = 0; h < p.blocks; ++h) {
    for (int64_t g = 0; g < p.blocks; ++g) {
      gemm<T>({.rows = state.heads_in(h), .cols = state.heads_in(g), .depth = z.count,
               .a = state.probabilities_of(h), .a_stride = p.width, .unit_rows = true,
               .b = state.probabilities_of(g), .b_stride = p.width, .c = out + (h * p.heads + g) * p.width,
               .c_stride = p.heads, .accumulate = false});
    }
  }
}

template <class T>
void moments_forward(const MomentsForwardParams<T>& params, int64_t begin, int64_t end) {
  const PromptParams<T>& p = params.prompts;
  const int64_t row = p.heads * p.dim, directions = params.directions;
  ChunkState<T> state(p, directions, 0);
  if (directions > 0) state.fill_directions(params.packed_directions);
  for (int64_t n = begin; n < end; ++n) {
    if ((n - begin) % kChunk == 0) state.project(n, end < n + kChunk ? end : n + kChunk);
    const Rows<T> z = context_rows(p, n, state.stage);
    for (int64_t block = 0; block < p.blocks; ++block) {
      state.attend(z, block, n);
      state.weigh(z, block, state.probabilities_of(block), params.moments + n * row);
      for (int64_t i = 0; i < directions; ++i) {
        state.differentiate_softmax(z, block, i);
        state.weigh(z, block, state.gradients_of(block, i), params.jacobian + (n * directions + i) * row);
      }
    }
    if (params.overlaps != nullptr) overlap(state, z, params.overlaps + n * p.heads * p.heads);
  }
}

// K = PᵀP: ∂P += P (∂K + ∂Kᵀ).
template <class T>
void overlap_backward(ChunkState<T>& state, const Rows<T>& z, const T* grad_overlaps, T* symmetric) {
  const PromptParams<T>& p = state.p;
  for (int64_t to = 0; to < p.blocks; ++to) {
    for (int64_t from = 0; from < p.blocks; ++from) {
      for (int64_t g = 0; g < state.heads_in(from); ++g) {
        for (int64_t h = 0; h < p.width; ++h) {
          const int64_t row = from * p.width + g, col = to * p.width + h;
          symmetric[g * p.width + h] =
              h < state.heads_in(to) ? grad_overlaps[row * p.heads + col] + grad_overlaps[col * p.heads + row] : T(0);
        }
      }
      gemm<T>({.rows = z.count, .cols = p.width, .depth = state.heads_in(from), .a = state.probabilities_of(from),
               .a_stride = p.width, .unit_rows = false, .b = symmetric, .b_stride = p.width,
               .c = state.gradients_of(to), .c_stride = p.width, .accumulate = true});
    }
  }
}

// ∂z_l = Σ_h p_lh ∂c_h + ∂s_lh r_h.
template <class T>
void context_backward(const ChunkState<T>& state, const Rows<T>& z, int64_t n, const T* grad_moments, T* by_head,
                      T* grad_context) {
  const PromptParams<T>& p = state.p;
  for (int64_t block = 0; block < p.blocks; ++block) {
    const int64_t heads = state.heads_in(block);
    const T* r = state.projected_of(block, n);
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t d = 0; d < p.dim; ++d) by_head[h * p.dim + d] = r[d * p.width + h];
    }
    GemmParams<T> product = {.rows = z.count, .cols = p.dim, .depth = heads, .a = state.probabilities_of(block),
                             .a_stride = p.width, .unit_rows = false, .b = grad_moments + block * p.width * p.dim,
                             .b_stride = p.dim, .c = grad_context, .c_stride = p.dim, .accumulate = block > 0};
    gemm<T>(product);
    product.a = state.gradients_of(block);
    product.b = by_head;
    product.accumulate = true;
    gemm<T>(product);
  }
}

// Σ over the chunk of ∂KQ_h[e, d] = ∂r_h[e] z_q[d], and ∂z_q = Σ_h KQ_hᵀ ∂r_h.
template <class T>
void projection_backward(const MomentsBackwardParams<T>& params, const ChunkState<T>& state, const T* grad_projected,
                         T* grad_kq, bool accumulate) {
  const PromptParams<T>& p = params.prompts;
  const int64_t row = p.heads * p.dim;
  if (grad_kq != nullptr) {
    gemm<T>({.rows = p.dim, .cols = row, .depth = state.count, .a = p.query + state.first * p.dim, .a_stride = p.dim,
             .unit_rows = true, .b = grad_projected, .b_stride = row, .c = grad_kq, .c_stride = row,
             .accumulate = accumulate});
  }
  if (params.grad_query != nullptr) {
    gemm<T>({.rows = state.count, .cols = p.dim, .depth = row, .a = grad_projected, .a_stride = row,
             .unit_rows = false, .b = params.kq, .b_stride = p.dim, .c = params.grad_query + state.first * p.dim,
             .c_stride = p.dim, .accumulate = false});
  }
}

template <class T>
void moments_backward(const MomentsBackwardParams<T>& params, int64_t begin, int64_t end, T* grad_kq) {
  const PromptParams<T>& p = params.prompts;
  const int64_t row = p.heads * p.dim;
  const auto padded = Workspace<T>::padded;
  ChunkState<T> state(p, 1, padded(kChunk * row) + padded(p.width * p.width) + padded(p.width * p.dim));
  T* grad_projected = state.workspace.take(kChunk * row);
  T* symmetric = state.workspace.take(p.width * p.width);
  T* by_head = state.workspace.take(p.width * p.dim);
  for (int64_t n = begin; n < end; ++n) {
    if ((n - begin) % kChunk == 0) state.project(n, end < n + kChunk ? end : n + kChunk);
    const Rows<T> z = context_rows(p, n, state.stage);
    const T* grad_moments = params.grad_moments + n * row;
    for (int64_t block = 0; block < p.blocks; ++block) {
      state.fill_direction(block, grad_moments + block * p.width * p.dim);
      state.attend(z, block, n);
    }
    if (params.grad_overlaps != nullptr) {
      overlap_backward(state, z, params.grad_overlaps + n * p.heads * p.heads, symmetric);
    }
    for (int64_t block = 0; block < p.blocks; ++block) {
      state.differentiate_softmax(z, block);
      state.weigh(z, block, state.gradients_of(block), grad_projected + (n - state.first) * row);
    }
    if (params.grad_context != nullptr) {
      context_backward(state, z, n, grad_moments, by_head, params.grad_context + n * p.context_length * p.dim);
    }
    if (n + 1 == state.first + state.count) {
      projection_backward(params, state, grad_projected, grad_kq, state.first > begin);
    }
  }
}
