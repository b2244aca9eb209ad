// Update rules on flat arrays, and what they want to know of a gradient.

// Σ g², in double but for runs of a few.
template <class T>
double sum_of_squares(const T* g, int64_t count) {
  constexpr int64_t run = 64 * kLanes<T>;
  double total = 0;
  for (int64_t first = 0; first < count; first += run) {
    const int64_t here = std::min(run, count - first);
    total += double(inner(g + first, g + first, here));
  }
  return total;
}

// Σ over `slices` ≤ 64 rows of `size` numbers, of columns [begin, end). Pairs of sums over equally many rows are added up as
// soon as they are there, so the sums that wait are those of the ones in the binary number of the rows so far; eight rows
// at a time stay in registers.
template <class T>
void add_rows(const T* rows, int64_t slices, int64_t size, int64_t begin, int64_t end, double* sums) {
  constexpr int lanes = kLanes<T>;
  typedef double Doubles __attribute__((vector_size(lanes * sizeof(double))));
  for (int64_t at = begin; at < end; at += lanes) {
    const int64_t count = std::min<int64_t>(lanes, end - at);
    const Head<T> here(count);
    Doubles waiting[7];
    int depth = 0;
    const auto pair = [&](int64_t slice) MHICL_INLINE_LAMBDA {
      const T* row = rows + slice * size + at;
      return __builtin_convertvector(load(row, here), Doubles) + __builtin_convertvector(load(row + size, here), Doubles);
    };
    int64_t slice = 0;
    for (; slice + 8 <= slices; slice += 8) {
      Doubles sum = (pair(slice) + pair(slice + 2)) + (pair(slice + 4) + pair(slice + 6));
      for (int64_t pairs = slice / 8; pairs & 1; pairs >>= 1) sum = waiting[--depth] + sum;
      waiting[depth++] = sum;
    }
    for (; slice < slices; ++slice) {
      Doubles sum = __builtin_convertvector(load(rows + slice * size + at, here), Doubles);
      for (int64_t pairs = slice; pairs & 1; pairs >>= 1) sum = waiting[--depth] + sum;
      waiting[depth++] = sum;
    }
    Doubles sum = waiting[--depth];
    while (depth > 0) sum = waiting[--depth] + sum;
    std::memcpy(sums + at, &sum, size_t(count) * sizeof(double));
  }
}

// body(vector's place, its lanes) over an array.
template <class T, class Body>
MHICL_INLINE void over_vectors(int64_t count, const Body& body) {
  for (int64_t j = 0; j < count; j += kLanes<T>) body(j, Head<T>(std::min<int64_t>(kLanes<T>, count - j)));
}

template <class T>
void descend(const UpdateParams<T>& u) {
  const Vec<T> step = broadcast<T>(-u.step);
  over_vectors<T>(u.count, [&](int64_t j, Head<T> here) MHICL_INLINE_LAMBDA {
    store(u.parameter + j, fma<T>(step, load(u.gradient + j, here), load(u.parameter + j, here)), here);
  });
}

template <class T>
void descend_with_momentum(const UpdateParams<T>& u) {
  const Vec<T> step = broadcast<T>(-u.step), momentum = broadcast<T>(u.momentum);
  over_vectors<T>(u.count, [&](int64_t j, Head<T> here) MHICL_INLINE_LAMBDA {
    const Vec<T> velocity = fma<T>(momentum, load(u.first + j, here), load(u.gradient + j, here));
    store(u.first + j, velocity, here);
    store(u.parameter + j, fma<T>(step, velocity, load(u.parameter + j, here)), here);
  });
}

// θ ← (1 − decay) θ − step · m / (√v / root + ε), m and v the gradient's running moments.
template <class T>
void adapt_moments(const UpdateParams<T>& u) {
  const Vec<T> step = broadcast<T>(-u.step), gain1 = broadcast<T>(T(1 - u.beta1)), beta2 = broadcast<T>(T(u.beta2));
  const Vec<T> gain2 = broadcast<T>(T(1 - u.beta2)), root = broadcast<T>(u.root), epsilon = broadcast<T>(u.epsilon);
  const Vec<T> kept = broadcast<T>(u.kept);
  over_vectors<T>(u.count, [&](int64_t j, Head<T> here) MHICL_INLINE_LAMBDA {
    const Vec<T> g = load(u.gradient + j, here);
    const Vec<T> m = fma<T>(gain1, g - load(u.first + j, here), load(u.first + j, here));
    const Vec<T> v = fma<T>(gain2, g * g, beta2 * load(u.second + j, here));
    store(u.first + j, m, here);
    store(u.second + j, v, here);
    const Vec<T> update = m / (square_root<T>(v) / root + epsilon);
    store(u.parameter + j, fma<T>(step, update, kept * load(u.parameter + j, here)), here);
  });
}
