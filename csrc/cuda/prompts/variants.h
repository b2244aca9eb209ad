// Which form of a kernel works on how many heads at a time: each number that it reads of a token serves all of them.
#pragma once

#include <cstdint>
#include <type_traits>

namespace mhicl::cuda {

template <int HEADS, bool TF32>
struct Variant {
  static constexpr int heads = HEADS;
  static constexpr bool tf32 = TF32;
};

// body(Variant). Double precision takes 4 heads: more would not fit in registers. TF32's products have 8, of
// which one or two heads would waste most.
template <class T, class Body>
auto with_variant(int64_t heads, bool tf32, const Body& body) {
  if constexpr (std::is_same_v<T, double>) {
    return body(Variant<4, false>());
  } else {
    if (heads <= 2) return body(Variant<2, false>());
    return tf32 ? body(Variant<8, true>()) : body(Variant<8, false>());
  }
}

}  // namespace mhicl::cuda
