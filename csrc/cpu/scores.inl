// Products of a prompt's context with the columns of its heads: logits, and their gradients' numerators.
//
// The columns stand in a panel (D × columns); results go to tables of one row a position (see softmax.inl).

// Rows of logits that are computed together.
#if defined(MHICL_ISA_AVX512)
inline constexpr int kScoreRows = 12;
#else
inline constexpr int kScoreRows = 6;
#endif

// What one block of heads has of one prompt: a table of logits, then probabilities, and one table of their gradient for
// each direction.
template <class T>
struct Tables {
  T* probabilities;
  T* gradients;
  int64_t stride;  // from one gradient to the next
  int64_t count;   // 1 + directions
  int64_t width;

  T* operator[](int64_t i) const { return i == 0 ? probabilities : gradients + (i - 1) * stride; }
};

// ROWS rows of COLS vectors of the product of the context with a panel (D × count·width), whose columns are those of the
// tables, one after another.
template <class T, int ROWS, int COLS>
void score_tile(const Rows<T>& z, int64_t l, int64_t dim, const T* panel, int64_t vector, const Tables<T>& tables,
                const Rotation<T>* rotations) {
  Vec<T> acc[ROWS][COLS];
  const T* rows = z.data + l * z.stride;
  // The next prompt's rows come from memory, while these are worked on, in step with the arithmetic: all at once they
  // would fill the queue to memory and stop everything.
  constexpr int lines = (ROWS * int(sizeof(T)) + 63) / 64;
  multiply_tile<T, ROWS, COLS, false, false, lines>(acc, dim, rows, z.stride, panel + vector * kLanes<T>,
                                                    tables.count * tables.width, Head<T>(0),
                                                    reinterpret_cast<const char*>(rows + z.to_next));
  const int64_t groups = kLanes<T> / tables.width;
  MHICL_UNROLL
  for (int c = 0; c < COLS; ++c) {
    for (int64_t g = 0; g < groups && (vector + c) * groups + g < tables.count; ++g) {
      // Whole vectors go out, in the order of the rows: what spills over belongs to rows that are written after.
      T* out = tables[(vector + c) * groups + g] + l * tables.width;
      const Rotation<T> rotation = rotations[g];
      MHICL_UNROLL
      for (int r = 0; r < ROWS; ++r) store(out + r * tables.width, rotate<T>(acc[r][c], rotation));
    }
  }
}

template <class T, int COLS>
void score_rows(const Rows<T>& z, int64_t dim, const T* panel, int64_t vector, const Tables<T>& tables,
                const Rotation<T>* rotations) {
  int64_t l = 0;
  for (; l + kScoreRows <= z.count; l += kScoreRows) {
    score_tile<T, kScoreRows, COLS>(z, l, dim, panel, vector, tables, rotations);
  }
  if (l == z.count) return;
  if (z.count >= kScoreRows) {  // The last tile steps back over rows already done.
    score_tile<T, kScoreRows, COLS>(z, z.count - kScoreRows, dim, panel, vector, tables, rotations);
    return;
  }
  for (; l + 2 <= z.count; l += 2) score_tile<T, 2, COLS>(z, l, dim, panel, vector, tables, rotations);
  for (; l < z.count; ++l) score_tile<T, 1, COLS>(z, l, dim, panel, vector, tables, rotations);
}

template <class T>
int64_t table_vectors(int64_t positions, int64_t width) {
  return (positions * width + kLanes<T> - 1) / kLanes<T>;
}

// The rotations that bring each group of `width` lanes to the front.
template <class T>
struct GroupRotations {
  Rotation<T> by[kLanes<T>];

  explicit GroupRotations(int64_t width) : GroupRotations(width, std::make_integer_sequence<int, kLanes<T>>{}) {}

 private:
  template <int... G>
  GroupRotations(int64_t width, std::integer_sequence<int, G...>)
      : by{Rotation<T>(int(G * width % kLanes<T>))...} {}
};

// Fills the tables and pads them to whole vectors with what softmax ignores.
template <class T>
void scores(const Rows<T>& z, int64_t dim, const T* panel, const Tables<T>& tables, const Rotation<T>* rotations) {
  const int64_t vectors = (tables.count * tables.width + kLanes<T> - 1) / kLanes<T>;
  int64_t vector = 0;
  for (; vector + 2 <= vectors; vector += 2) score_rows<T, 2>(z, dim, panel, vector, tables, rotations);
  if (vector < vectors) score_rows<T, 1>(z, dim, panel, vector, tables, rotations);
  const int64_t used = z.count * tables.width, whole = table_vectors<T>(z.count, tables.width) * kLanes<T>;
  for (int64_t i = 0; i < tables.count; ++i) {
    for (int64_t at = used; at < whole; ++at) tables[i][at] = i == 0 ? -std::numeric_limits<T>::infinity() : T(0);
  }
}
