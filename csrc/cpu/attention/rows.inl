// The rows of a problem, worked on in blocks of a few vectors: a row is a lane. So queries are the columns of small
// matrices (dim × rows), and tables of logits and weights (keys × rows) reduce over keys without crossing lanes.

// The most vectors of rows in a block: as many as a tile of a product has.
inline constexpr int kBlockVectors = kTileCols;

template <class T>
Blocking forward_blocking(int64_t) {
  return {kBlockVectors * kLanes<T>, 256};
}

// The gradient needs each row's Σ_l w_l ∂w_l before anything else, so all keys had better be in one block, whose tables
// stay in the second-level cache if rows are fewer the more the keys are.
template <class T>
Blocking backward_blocking(int64_t keys) {
  constexpr int64_t one_block = 512 * kBlockVectors;
  if (keys > one_block) return {kBlockVectors * kLanes<T>, 512};
  const int64_t vectors = std::min<int64_t>(kBlockVectors, one_block / std::max<int64_t>(keys, 1));
  return {vectors * kLanes<T>, std::max<int64_t>(keys, 1)};
}

template <class T>
constexpr int64_t whole_vectors(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T>;
}
template <class T>
constexpr int64_t padded_to_vectors(int64_t n) {
  return whole_vectors<T>(n) * kLanes<T>;
}

struct RowBlock {
  int64_t first, count;  // rows of the problem
  int64_t width;         // lanes of its vectors
};

// Vectors are spread evenly over the blocks.
template <class T>
RowBlock row_block(const AttentionParams<T>& p, int64_t index) {
  const int64_t rows = p.group * p.rows, vectors = whole_vectors<T>(rows), blocks = blocks_of(rows, p.blocking.rows);
  const int64_t first = vectors * index / blocks * kLanes<T>, last = vectors * (index + 1) / blocks * kLanes<T>;
  return {first, std::min(last, rows) - first, last - first};
}

// One key head of one batch entry, with the rows that look at it.
template <class T>
struct Problem {
  int64_t index, batch, head;
  int64_t keys;  // that are valid

  Problem(const AttentionParams<T>& p, int64_t index)
      : index(index),
        batch(index / p.key_heads),
        head(index % p.key_heads),
        keys(p.key_lengths == nullptr ? p.keys : p.key_lengths[batch]) {}

  // The first of a problem's rows in what has (B, Hq, Lq, …) contiguous.
  int64_t first_row(const AttentionParams<T>& p) const { return index * p.group * p.rows; }
};

// How many keys are worked on together.
template <class T>
int64_t key_block(const AttentionParams<T>& p) {
  return std::min(p.keys, p.blocking.keys);
}

// Whether there are keys that some row does not see, though they are valid.
template <class T>
bool may_hide(const AttentionParams<T>& p) {
  return p.mask_kind != MaskKind::none || p.causal;
}

// Where row i of head g of the group begins in an operand (batch, query heads, rows, …).
template <class T, class Pointer>
MHICL_INLINE int64_t row_offset(const AttentionParams<T>& p, const Problem<T>& problem, const Operand<Pointer>& x,
                                int64_t g, int64_t i) {
  return problem.batch * x.batch + (problem.head * p.group + g) * x.head + i * x.row;
}

// Calls visit(r, g, i) for each row r of a block: row i of head g of the group.
template <class T, class Visit>
MHICL_INLINE void for_rows(const AttentionParams<T>& p, const RowBlock& block, const Visit& visit) {
  int64_t g = block.first / p.rows, i = block.first % p.rows;
  for (int64_t r = 0; r < block.count; ++r) {
    visit(r, g, i);
    if (++i == p.rows) {
      i = 0;
      ++g;
    }
  }
}

// n elements of stored data times a factor, filled up with zeros to whole vectors.
template <class T>
MHICL_INLINE void copy_row(const void* data, int64_t at, int64_t step, int64_t n, Storage storage, T factor, T* out) {
  constexpr int W = kLanes<T>;
  if (storage == Storage::native && step == 1) {
    const T* in = static_cast<const T*>(data) + at;
    const Vec<T> times = broadcast<T>(factor);
    int64_t e = 0;
    for (; e + W <= n; e += W) store(out + e, load(in + e) * times);
    if (e < n) store(out + e, load(in + e, Head<T>(n - e)) * times);
    return;
  }
  for (int64_t e = 0; e < n; ++e) out[e] = factor * read<T>(data, at + e * step, storage);
  for (int64_t e = n; e < padded_to_vectors<T>(n); ++e) out[e] = T(0);
}

template <class T>
MHICL_INLINE void write_row(const T* row, int64_t n, T factor, void* data, int64_t at, Storage storage) {
  constexpr int W = kLanes<T>;
  if (storage == Storage::native) {
    T* out = static_cast<T*>(data) + at;
    const Vec<T> times = broadcast<T>(factor);
    int64_t e = 0;
    for (; e + W <= n; e += W) store(out + e, load(row + e) * times);
    if (e < n) store(out + e, load(row + e) * times, Head<T>(n - e));
    return;
  }
  for (int64_t e = 0; e < n; ++e) write<T>(data, at + e, factor * row[e], storage);
}

// A block's rows of (batch, heads, rows, columns) as (width × padded columns), zeros where there is no row.
template <class T>
void gather_rows(const AttentionParams<T>& p, const Problem<T>& problem, const RowBlock& block,
                 const Operand<const void*>& from, int64_t columns, T factor, T* out) {
  const int64_t stride = padded_to_vectors<T>(columns);
  for_rows(p, block, [&](int64_t r, int64_t g, int64_t i) MHICL_INLINE_LAMBDA {
    copy_row(from.data, row_offset(p, problem, from, g, i), from.column, columns, p.storage, factor, out + r * stride);
  });
  std::memset(out + block.count * stride, 0, size_t((block.width - block.count) * stride) * sizeof(T));
}

// Where a block of rows leaves its problem, the next one's operands can be on their way.
template <class T>
class NextProblem {
 public:
  NextProblem(const AttentionParams<T>& p, const Problem<T>& problem, const RowBlock& block)
      : p_(p), index_(problem.index + 1), comes_(block.first + block.count == p.group * p.rows) {}

  Ahead keys(const Operand<const void*>& from, int64_t columns) const {
    return rows(from, from.head, from.row, p_.keys, columns);
  }
  Ahead queries(const Operand<const void*>& from, int64_t columns) const {
    const bool by_head = p_.rows == 1;
    return rows(from, p_.group * from.head, by_head ? from.head : from.row,
                std::min(by_head ? p_.group : p_.rows, p_.blocking.rows), columns);
  }

 private:
  // None where they are many: the processor then sees by itself what comes.
  Ahead rows(const Operand<const void*>& from, int64_t head, int64_t row, int64_t count, int64_t columns) const {
    constexpr int64_t most = 64 * 1024;
    const int64_t bytes = p_.storage == Storage::native ? sizeof(T) : 2;
    if (!comes_ || index_ >= p_.batch * p_.key_heads || from.column != 1 || count * columns * bytes > most) return {};
    const int64_t first = index_ / p_.key_heads * from.batch + index_ % p_.key_heads * head;
    return {static_cast<const char*>(from.data) + first * bytes, count, row * bytes, columns * bytes};
  }

  const AttentionParams<T>& p_;
  const int64_t index_;
  const bool comes_;
};

// (rows × padded columns), a row times its factor, to where a block's rows belong.
template <class T, class Factor>
void scatter_rows(const AttentionParams<T>& p, const Problem<T>& problem, const RowBlock& block, const T* rows,
                  int64_t columns, const Factor& factor, const Operand<void*>& to) {
  for_rows(p, block, [&](int64_t r, int64_t g, int64_t i) MHICL_INLINE_LAMBDA {
    write_row(rows + r * padded_to_vectors<T>(columns), columns, factor(r), to.data, row_offset(p, problem, to, g, i),
              p.storage);
  });
}

// What a problem's keys or values hold: in place where they are rows of T, otherwise copied for one block of keys.
template <class T>
struct KeyRows {
  const T* data;
  int64_t stride;
};

template <class T>
class KeyReader {
 public:
  // keys: of which at most so many are asked for at a time.
  KeyReader(const AttentionParams<T>& p, const Operand<const void*>& from, int64_t columns, int64_t keys,
            Workspace<T>& workspace)
      : from_(from), columns_(columns), storage_(p.storage), stage_(nullptr) {
    if (!in_place(p, from)) stage_ = workspace.take(keys * padded_to_vectors<T>(columns));
  }

  static int64_t size(const AttentionParams<T>& p, const Operand<const void*>& from, int64_t columns, int64_t keys) {
    return in_place(p, from) ? 0 : Workspace<T>::padded(keys * padded_to_vectors<T>(columns));
  }

  static bool in_place(const AttentionParams<T>& p, const Operand<const void*>& from) {
    return p.storage == Storage::native && from.column == 1;
  }

  KeyRows<T> operator()(const Problem<T>& problem, int64_t first, int64_t count) {
    const int64_t base = problem.batch * from_.batch + problem.head * from_.head;
    if (stage_ == nullptr) return {static_cast<const T*>(from_.data) + base + first * from_.row, from_.row};
    const int64_t stride = padded_to_vectors<T>(columns_);
    if (problem.index != staged_problem_ || first != staged_first_ || count > staged_count_) {
      for (int64_t l = 0; l < count; ++l) {
        copy_row(from_.data, base + (first + l) * from_.row, from_.column, columns_, storage_, T(1), stage_ + l * stride);
      }
      staged_problem_ = problem.index;
      staged_first_ = first;
      staged_count_ = count;
    }
    return {stage_, stride};
  }

 private:
  const Operand<const void*>& from_;
  const int64_t columns_;
  const Storage storage_;
  T* stage_;
  int64_t staged_problem_ = -1, staged_first_ = -1, staged_count_ = 0;
};
