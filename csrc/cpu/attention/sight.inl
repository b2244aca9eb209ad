// Which keys the rows of a block see, and what is added to their logits.

// Causal rule: the lanes' positions, and by vector of rows how many keys all of its rows see, and any of them.
template <class T>
struct CausalLimits {
  VecBits<T> position[kBlockVectors];
  int64_t all[kBlockVectors], any[kBlockVectors];  // any: never decreasing from vector to vector

  void find(const AttentionParams<T>& p, const RowBlock& block) {
    constexpr int W = kLanes<T>;
    const int vectors = int(block.width / W);
    int64_t last = 0;
    for_rows(p, block, [&](int64_t r, int64_t, int64_t i) MHICL_INLINE_LAMBDA { set(r, last = i); });
    for (int64_t r = block.count; r < block.width; ++r) set(r, last);
    bool ordered = true;
    for (int v = 1; v < vectors; ++v) ordered = ordered && any[v - 1] <= any[v];
    if (ordered) return;
    for (int v = 0; v < vectors; ++v) last = std::max(last, any[v] - 1);
    for (int v = 0; v < vectors; ++v) any[v] = last + 1;
  }

 private:
  void set(int64_t r, int64_t i) {
    const int v = int(r / kLanes<T>), lane = int(r % kLanes<T>);
    position[v][lane] = static_cast<decltype(position[v][lane] + 0)>(i);
    all[v] = lane == 0 ? i + 1 : std::min(all[v], i + 1);
    any[v] = lane == 0 ? i + 1 : std::max(any[v], i + 1);
  }
};

// A run of keys [begin, end) of a key block that the vectors from `vector` on look at.
struct Segment {
  int64_t begin, end;
  int vector;
};

// What a block of rows sees of the keys [first, first + count).
template <class T>
struct Sight {
  int64_t first, count;
  int vectors;
  int64_t seen[kBlockVectors];  // by vector: keys [0, seen) are seen by some row
  int segments;
  Segment segment[kBlockVectors];
  const CausalLimits<T>* causal;  // or null
  const T* bias;                  // (count × width): −∞ hides, anything else is added; or null. Knows the causal rule.

  Sight(const CausalLimits<T>* causal, const RowBlock& block, int64_t first, int64_t count)
      : first(first), count(count), vectors(int(block.width / kLanes<T>)), causal(causal), bias(nullptr) {
    int64_t begin = 0;
    segments = 0;
    for (int v = 0; v < vectors; ++v) {
      seen[v] = causal == nullptr ? count : std::clamp<int64_t>(causal->any[v] - first, 0, count);
      if (seen[v] > begin) segment[segments++] = {begin, seen[v], v};
      begin = seen[v];
    }
  }
};

// What a mask adds to a logit: −∞ where it hides the key.
template <class T>
MHICL_INLINE T mask_bias(const AttentionParams<T>& p, int64_t at) {
  if (p.mask_kind == MaskKind::additive) return read<T>(p.mask.data, at, p.storage);
  const bool sees = p.mask_kind == MaskKind::none || static_cast<const uint8_t*>(p.mask.data)[at] != 0;
  return sees ? T(0) : -std::numeric_limits<T>::infinity();
}

// What it adds for `count` keys in a row, at most a vector; 0 in the other lanes.
template <class T>
MHICL_INLINE Vec<T> mask_biases(const AttentionParams<T>& p, int64_t at, int64_t count) {
  constexpr int W = kLanes<T>;
  typedef int8_t Bytes __attribute__((vector_size(W)));
  Vec<T> bias{};
  if (p.mask_kind == MaskKind::boolean && p.mask.column == 1) {
    Bytes sees{};
    std::memcpy(&sees, static_cast<const int8_t*>(p.mask.data) + at, size_t(count));
    const VecBits<T> hidden = __builtin_convertvector(sees == Bytes{}, VecBits<T>);
    bias = select<T>(hidden, broadcast<T>(-std::numeric_limits<T>::infinity()), bias);
  } else if (p.mask_kind == MaskKind::additive && p.mask.column == 1 && p.storage == Storage::native) {
    const T* row = static_cast<const T*>(p.mask.data) + at;
    bias = count == W ? load(row) : load(row, Head<T>(count));
  } else {
    for (int64_t l = 0; l < count; ++l) bias[l] = mask_bias(p, at + l * p.mask.column);
  }
  return bias;
}

// The mask's rows for a block, as (keys × rows).
template <class T>
void transpose_mask(const AttentionParams<T>& p, const Problem<T>& problem, const RowBlock& block, int64_t first,
                    int64_t count, T* bias) {
  constexpr int W = kLanes<T>;
  const Operand<const void*>& mask = p.mask;
  int64_t row[kBlockVectors * W];
  for_rows(p, block, [&](int64_t r, int64_t g, int64_t i) MHICL_INLINE_LAMBDA {
    row[r] = row_offset(p, problem, mask, g, i) + first * mask.column;
  });
  for (int64_t lane = 0; lane < block.width; lane += W) {
    for (int64_t l = 0; l < count; l += W) {
      const int64_t keys = std::min<int64_t>(W, count - l);
      Vec<T> tile[W];
      for (int i = 0; i < W; ++i) {
        tile[i] = lane + i < block.count ? mask_biases(p, row[lane + i] + l * mask.column, keys) : Vec<T>{};
      }
      transpose_square<T, W / 2>(tile);
      for (int64_t i = 0; i < keys; ++i) store(bias + (l + i) * block.width + lane, tile[i]);
    }
  }
}

// What is added to a block's logits, (keys × rows): −∞ where a row does not see a key.
template <class T>
void fill_bias(const AttentionParams<T>& p, const Problem<T>& problem, const RowBlock& block,
               const CausalLimits<T>* causal, int64_t first, int64_t count, T* bias) {
  constexpr int W = kLanes<T>;
  const bool alike = p.mask.row == 0 && (p.group == 1 || p.mask.head == 0);
  if (p.mask_kind != MaskKind::none && !alike) transpose_mask(p, problem, block, first, count, bias);
  const int64_t base = row_offset(p, problem, p.mask, 0, 0) + first * p.mask.column;
  for (int64_t l = 0; l < count; ++l) {
    T* row = bias + l * block.width;
    if (p.mask_kind == MaskKind::none || alike) {
      std::fill_n(row, block.width, mask_bias(p, base + l * p.mask.column));
    }
    for (int64_t lane = 0; causal != nullptr && lane < block.width; lane += W) {
      const VecBits<T> position = causal->position[lane / W];
      const VecBits<T> key = VecBits<T>{} + static_cast<decltype(position[0] + 0)>(first + l);
      const Vec<T> hides = broadcast<T>(-std::numeric_limits<T>::infinity());
      store(row + lane, select<T>(key > position, hides, load(row + lane)));
    }
  }
}

// Whether row i of head g of the group sees any key.
template <class T>
bool sees_a_key(const AttentionParams<T>& p, const Problem<T>& problem, int64_t g, int64_t i) {
  const Operand<const void*>& mask = p.mask;
  const int64_t row = row_offset(p, problem, mask, g, i);
  const int64_t keys = p.causal ? std::min(problem.keys, i + 1) : problem.keys;
  for (int64_t l = 0; l < keys; ++l) {
    if (mask_bias(p, row + l * mask.column) != -std::numeric_limits<T>::infinity()) return true;
  }
  return false;
}

// Whether any of a problem's rows sees a key.
template <class T>
bool key_is_seen(const AttentionParams<T>& p, const Problem<T>& problem, int64_t l) {
  const Operand<const void*>& mask = p.mask;
  for (int64_t g = 0; g < p.group; ++g) {
    for (int64_t i = p.causal ? l : 0; i < p.rows; ++i) {
      if (mask_bias(p, row_offset(p, problem, mask, g, i) + l * mask.column) != -std::numeric_limits<T>::infinity()) return true;
    }
  }
  return false;
}

// Puts `value` where a row does not see a key. Adds the mask elsewhere if Add.
template <class T, bool Add>
void hide(T* table, const Sight<T>& sight, T value) {
  constexpr int W = kLanes<T>;
  const int64_t width = sight.vectors * W;
  const Vec<T> hidden = broadcast<T>(value), hides = broadcast<T>(-std::numeric_limits<T>::infinity());
  for (int v = 0; v < sight.vectors; ++v) {
    T* column = table + v * W;
    if (sight.bias != nullptr) {
      for (int64_t l = 0; l < sight.seen[v]; ++l) {
        const Vec<T> bias = load(sight.bias + l * width + v * W), x = load(column + l * width);
        store(column + l * width, select<T>(bias == hides, hidden, Add ? x + bias : x));
      }
    } else if (sight.causal != nullptr) {
      const VecBits<T> position = sight.causal->position[v];
      for (int64_t l = std::max<int64_t>(0, sight.causal->all[v] - sight.first); l < sight.seen[v]; ++l) {
        const VecBits<T> key = VecBits<T>{} + static_cast<decltype(position[0] + 0)>(sight.first + l);
        store(column + l * width, select<T>(key > position, hidden, load(column + l * width)));
      }
    }
  }
}

// A table (keys × rows) as rows of what is stored as (rows × keys), `stride` apart, zeros where nobody looks.
template <class T>
void write_table(const RowBlock& block, const Sight<T>& sight, const T* table, void* out, int64_t at, int64_t stride,
                 Storage storage) {
  for (int64_t r = 0; r < block.count; ++r) {
    const int64_t seen = sight.seen[r / kLanes<T>];
    for (int64_t l = 0; l < sight.count; ++l) {
      write<T>(out, at + r * stride + l, l < seen ? table[l * block.width + r] : T(0), storage);
    }
  }
}
