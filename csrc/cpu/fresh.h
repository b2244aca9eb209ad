// Memory for large results.
#pragma once

#include <ATen/ATen.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mhicl {

// As at::empty. What is large comes fresh from the system, and to write it for the first time costs a page fault every
// page, more than the arithmetic of a small problem. So large results ask for large pages, where the system has them.
inline at::Tensor fresh(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor tensor = at::empty(sizes, options);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(1) << 21;
  const auto address = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t begin = (address + page - 1) / page * page, end = (address + tensor.nbytes()) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // refusal costs only time
#endif
  return tensor;
}

}  // namespace mhicl
