// From logits to weights and back, on tables of one row a key and one lane a query row.

// One vector of rows: logits become e^(s − max), where max and the sum are over all keys so far. `sums`, which holds
// Σ e^(s − old max) v (dim × rows), is brought to the new maximum.
template <class T>
void exponentials(T* column, int64_t width, int64_t keys, bool first, T* maxima, T* totals, T* sums, int64_t dim) {
  const Vec<T> lowest = broadcast<T>(-std::numeric_limits<T>::infinity());
  const auto larger = [&](Vec<T> top, int64_t l) MHICL_INLINE_LAMBDA { return max<T>(top, load(column + l * width)); };
  const Vec<T> before = first ? lowest : load(maxima);
  const Vec<T> top = max<T>(before, reduce<T>(keys, lowest, larger, Larger<T>{}));
  const Vec<T> shift = select<T>(top == lowest, Vec<T>{}, top);
  const auto exponential = [&](Vec<T> sum, int64_t l) MHICL_INLINE_LAMBDA {
    const Vec<T> e = exp_nonpositive<T>(load(column + l * width) - shift);
    store(column + l * width, e);
    return sum + e;
  };
  Vec<T> total = reduce<T>(keys, Vec<T>{}, exponential, Add<T>{});
  if (!first) {
    const Vec<T> factor = exp_nonpositive<T>(before - shift);
    total = fma<T>(load(totals), factor, total);
    for (int64_t e = 0; e < dim; ++e) store(sums + e * width, load(sums + e * width) * factor);
  }
  store(maxima, top);
  store(totals, total);
}

// One row (whole vectors) of logits becomes e^(s − max).
template <class T>
void row_exponentials(T* row, int64_t elements, T& top, T& total) {
  constexpr int W = kLanes<T>;
  const int64_t vectors = elements / W;
  const Vec<T> lowest = broadcast<T>(-std::numeric_limits<T>::infinity());
  const auto larger = [&](Vec<T> x, int64_t v) MHICL_INLINE_LAMBDA { return max<T>(x, load(row + v * W)); };
  const Vec<T> highest = largest_by_head<T>(reduce<T>(vectors, lowest, larger, Larger<T>{}), 1);
  const Vec<T> shift = select<T>(highest == lowest, Vec<T>{}, highest);
  const auto exponential = [&](Vec<T> sum, int64_t v) MHICL_INLINE_LAMBDA {
    const Vec<T> e = exp_nonpositive<T>(load(row + v * W) - shift);
    store(row + v * W, e);
    return sum + e;
  };
  total = sum_by_head<T>(reduce<T>(vectors, Vec<T>{}, exponential, Add<T>{}), 1)[0];
  top = highest[0];
}

// w = e^(s − shift) · inverse.
template <class T>
void probabilities(T* column, int64_t width, int64_t keys, const T* shift, const T* inverse) {
  const Vec<T> by = load(shift), times = load(inverse);
  for (int64_t l = 0; l < keys; ++l) {
    store(column + l * width, exp_nonpositive<T>(load(column + l * width) - by) * times);
  }
}

template <class T>
void rectify(T* column, int64_t width, int64_t keys) {
  for (int64_t l = 0; l < keys; ++l) {
    const Vec<T> s = load(column + l * width);
    store(column + l * width, select<T>(s <= Vec<T>{}, Vec<T>{}, s));  // NaN stays
  }
}

// Logits become weights, where the softmax's shift and inverse sum are known already.
template <class T>
void weigh(Activation activation, T* column, int64_t width, int64_t keys, const T* shift, const T* inverse) {
  if (activation == Activation::softmax) probabilities(column, width, keys, shift, inverse);
  else if (activation == Activation::relu) rectify(column, width, keys);
}

// sums += Σ_l w_l ∂w_l.
template <class T>
void add_products(const T* weights, const T* gradients, int64_t width, int64_t keys, T* sums) {
  const auto product = [&](Vec<T> sum, int64_t l) MHICL_INLINE_LAMBDA {
    return fma<T>(load(weights + l * width), load(gradients + l * width), sum);
  };
  store(sums, load(sums) + reduce<T>(keys, Vec<T>{}, product, Add<T>{}));
}

// ∂w becomes ∂s: softmax w (∂w − Σ_m w_m ∂w_m), linear ∂w, relu ∂w where w > 0.
template <class T>
void logit_gradients(Activation activation, const T* weights, T* gradients, int64_t width, int64_t keys,
                     const T* mean) {
  if (activation == Activation::linear) return;
  const Vec<T> subtract = load(mean);
  for (int64_t l = 0; l < keys; ++l) {
    const Vec<T> w = load(weights + l * width), g = load(gradients + l * width);
    store(gradients + l * width, activation == Activation::softmax ? w * (g - subtract)
                                                                   : select<T>(w <= Vec<T>{}, Vec<T>{}, g));
  }
}
