// Where one prompt's context is: in place, or widened and gathered into scratch memory.

// One prompt's context as rows of T: in place where it is stored so, otherwise copied to `stage`.
template <class T>
struct Rows {
  const T* data;
  int64_t stride, count;
  int64_t to_next;  // from a row to the same row of the next prompt; 0 where prompts are not adjacent rows
};

template <class T>
Rows<T> context_rows(const PromptParams<T>& p, int64_t n, T* stage) {
  const int64_t count = p.lengths == nullptr ? p.context_length : p.lengths[n];
  const int64_t offset = n * p.prompt_stride;
  if (stage == nullptr) {
    const bool adjacent = p.position_stride == p.dim && n + 1 < p.n_prompts;
    return {static_cast<const T*>(p.context) + offset, p.position_stride, count, adjacent ? p.prompt_stride : 0};
  }
  for (int64_t l = 0; l < count; ++l) {
    const int64_t row = offset + l * p.position_stride;
    for (int64_t d = 0; d < p.dim; ++d) stage[l * p.dim + d] = read<T>(p.context, row + d * p.element_stride, p.storage);
  }
  return {stage, p.dim, count, 0};
}

template <class T>
bool needs_stage(const PromptParams<T>& p) {
  return p.storage != Storage::native || p.element_stride != 1;
}
