// Products of a whole group of prompts with the same weights.

// Where an operand of each next prompt begins, in elements from the one before.
struct PromptSteps {
  int64_t a, b, c;
};

// The same product for each prompt, a few columns at a time, so that what the prompts share is fetched once for all of
// them. What has a step of 0 is shared; products into a shared C add up, onto what it held if p.accumulate.
template <class T>
void gemm_of_each(int64_t prompts, const GemmParams<T>& p, const PromptSteps& step) {
  const int64_t strip = prompts == 1 ? p.cols : 2 * kTileCols * kLanes<T>;
  for (int64_t col = 0; col < p.cols; col += strip) {
    for (int64_t g = 0; g < prompts; ++g) {
      GemmParams<T> product = p;
      product.cols = std::min(strip, p.cols - col);
      product.a += g * step.a;
      product.b += g * step.b + col;
      product.c += g * step.c + col;
      product.accumulate = p.accumulate || (step.c == 0 && g > 0);
      gemm(product);
    }
  }
}
