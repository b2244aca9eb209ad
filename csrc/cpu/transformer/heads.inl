// The heads of one layer on one prompt. A querying row is a lane: tables of logits and weights are (keys × lanes), and what
// belongs to rows is wanted transposed, (H·E × lanes). Lanes past the last row hold anything and reach no other lane.

template <class T>
struct PromptHeads {
  Activation activation;
  int64_t heads, dim, keys, rows, lanes;
  const T* queries;      // (lanes, H·E)
  const T* keys_values;  // (keys, 2·H·E)
  T* weights;            // (H, keys, lanes)
  T* pairs;              // room for a head's numbers of all rows, two rows a vector

  int64_t inner() const { return heads * dim; }
  const T* key(int64_t head) const { return keys_values + head * dim; }
  const T* value(int64_t head) const { return key(head) + inner(); }
  T* table(int64_t head) const { return weights + head * keys * lanes; }

  // o_r = Σ_l w_rl v_l. `columns` are the queries transposed.
  void forward(const T* columns, T* outputs) const {
    for (int64_t h = 0; h < heads; ++h) {
      keys_by_rows(key(h), columns + h * dim * lanes, table(h));
      if (activation == Activation::softmax) softmax_of_rows(table(h));
      sums_over_keys(value(h), table(h), outputs + h * dim * lanes);
    }
  }

  // ∂v_l = Σ_r w_rl ∂o_r,  ∂w_rl = ∂o_r·v_l,  ∂s = w (∂w − Σ_l w_l ∂w_l) or ∂w,  ∂q_r = Σ_l ∂s_rl k_l,  ∂k_l = Σ_r ∂s_rl q_r.
  // `grad_columns` is grad_outputs (lanes, H·E) transposed, `scratch` has room for a table.
  void backward(const T* grad_outputs, const T* grad_columns, T* scratch, T* grad_queries, T* grad_keys_values) const {
    for (int64_t h = 0; h < heads; ++h) {
      T* const grad_key = grad_keys_values + h * dim;
      sums_over_rows(table(h), grad_outputs + h * dim, grad_key + inner());
      keys_by_rows(value(h), grad_columns + h * dim * lanes, scratch);
      if (activation == Activation::softmax) softmax_of_rows_backward(table(h), scratch);
      sums_over_keys(key(h), scratch, grad_queries + h * dim * lanes);
      sums_over_rows(scratch, queries + h * dim, grad_key);
    }
  }

 private:
  // out (keys × lanes) = keys (keys × dim) · columns (dim × lanes).
  void keys_by_rows(const T* key, const T* columns, T* out) const {
    gemm<T>({.rows = keys, .cols = lanes, .depth = dim, .a = key, .a_stride = 2 * inner(), .unit_rows = false,
             .b = columns, .b_stride = lanes, .c = out, .c_stride = lanes, .accumulate = false});
  }
  // out (dim × lanes) = keysᵀ · table.
  void sums_over_keys(const T* key, const T* table, T* out) const {
    gemm<T>({.rows = dim, .cols = lanes, .depth = keys, .a = key, .a_stride = 2 * inner(), .unit_rows = true,
             .b = table, .b_stride = lanes, .c = out, .c_stride = lanes, .accumulate = false});
  }
  // out (keys × dim) = table · rows (rows × dim).
  void sums_over_rows(const T* table, const T* of_rows, T* out) const {
    if constexpr (std::is_same_v<T, float>) {
      if (2 * dim <= kLanes<T>) {
        pair_rows(of_rows, inner(), rows, dim, pairs);
        sum_pairs<kTileRows>({.keys = keys, .dim = dim, .rows = rows, .table = table, .table_stride = lanes,
                              .pairs = pairs, .out = out, .out_stride = 2 * inner()}, 0);
        return;
      }
    }
    gemm<T>({.rows = keys, .cols = dim, .depth = rows, .a = table, .a_stride = lanes, .unit_rows = false,
             .b = of_rows, .b_stride = inner(), .c = out, .c_stride = 2 * inner(), .accumulate = false});
  }

  void softmax_of_rows(T* table) const {
    alignas(64) T top[kLanes<T>], total[kLanes<T>];
    for (int64_t lane = 0; lane < lanes; lane += kLanes<T>) {
      exponentials<T>(table + lane, lanes, keys, true, top, total, nullptr, 0);
      const Vec<T> inverse = broadcast<T>(T(1)) / load(total);
      for (int64_t l = 0; l < keys; ++l) {
        T* const at = table + l * lanes + lane;
        store(at, load(at) * inverse);
      }
    }
  }

  void softmax_of_rows_backward(const T* table, T* gradients) const {
    for (int64_t lane = 0; lane < lanes; lane += kLanes<T>) {
      alignas(64) T mean[kLanes<T>] = {};
      add_products(table + lane, gradients + lane, lanes, keys, mean);
      logit_gradients(activation, table + lane, gradients + lane, lanes, keys, mean);
    }
  }
};
