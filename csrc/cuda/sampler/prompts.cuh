// What a block does to make the prompts of one item: draw, multiply, write the rows. As on the CPU the columns of a
// tile stay apart until the end, and 16 tokens stand in 16 lanes.
#pragma once

#include "../normals.cuh"
#include "plan.h"

namespace mhicl::cuda {

struct SampledItem {
  int64_t first_prompt, first_token;
  int prompts, tokens, tiles;  // tokens and tiles of each prompt
};

__device__ __forceinline__ SampledItem sampled_item(const SamplerPlan& plan, int64_t context_length, int64_t index) {
  const int64_t group = index / plan.chunks, first_prompt = group * plan.prompts;
  const int64_t first_tile = (index - group * plan.chunks) * plan.tiles, first_token = first_tile * philox::kTile;
  const int64_t prompts = std::min<int64_t>(plan.prompts, plan.n_prompts - first_prompt);
  const int64_t tokens = std::min<int64_t>(int64_t{plan.tiles} * philox::kTile, context_length - first_token);
  return {first_prompt, first_token, int(prompts), int(tokens), int((tokens + philox::kTile - 1) / philox::kTile)};
}

// The prompt among the item's that a piece of work belongs to, `each` of them to one, and what is left.
struct OfPrompt {
  int prompt, rest;
};

__device__ __forceinline__ OfPrompt of_prompt(int work, int each, const SampledItem& item) {
  const int prompt = item.prompts == 1 ? 0 : work / each;
  return {prompt, work - prompt * each};
}

// Runs first_run, first_run + 1, … of a stream, and where they go.
struct StreamRuns {
  uint32_t stream;
  int64_t first_run;
  int runs, to;
};

// Block `index` of those that draw the runs: one number of each of four runs.
template <class T>
__device__ __forceinline__ void draw_block(const philox::Stream& stream, const StreamRuns& part, int index,
                                           T* numbers) {
  const uint32_t first_block = uint32_t(part.first_run / philox::kWords * philox::kLanes);
  const Four<T> four = normals_of_block<T>(stream, first_block + uint32_t(index));
  const int run = index / philox::kLanes * philox::kWords - int(part.first_run % philox::kWords);
  T* to = numbers + part.to + index % philox::kLanes;
  for (int k = 0; k < philox::kWords; ++k) {
    if (0 <= run + k && run + k < part.runs) to[(run + k) * run_places] = four.x[k];
  }
}

// The numbers of the streams that the item takes. The first tokens' noise comes with the numbers before it, that of
// later ones by itself.
template <class T>
__device__ __forceinline__ void draw_prompts(const MultiTaskParams<T>& p, const SamplerPlan& plan,
                                             const SampledItem& item, T* memory) {
  const int64_t first_tile = item.first_token / philox::kTile;
  const bool first = first_tile == 0;
  const int head_runs = int(philox::first_context_noise(p.dim_x, p.n_tasks) / philox::kLanes);
  const int xi_runs = item.tiles * int(p.dim_x), noise_runs = p.noise_std > T(0) ? item.tiles * int(p.n_tasks) : 0;
  const int64_t first_xi = first_tile * p.dim_x, first_noise = head_runs + first_tile * p.n_tasks;
  const int xi_blocks = philox_blocks(first_xi, xi_runs);
  const int head_blocks = philox_blocks(0, head_runs + (first ? noise_runs : 0));
  const int blocks = xi_blocks + head_blocks + (first ? 0 : philox_blocks(first_noise, noise_runs));
  for (int work = int(threadIdx.x); work < item.prompts * blocks; work += int(blockDim.x)) {
    const int prompt = item.prompts == 1 ? 0 : plan.by_philox_blocks.quotient(work);
    int index = work - prompt * blocks;
    StreamRuns part = {philox::kContext, first_xi, xi_runs, 0};
    if (index >= xi_blocks) {
      index -= xi_blocks;
      part = {philox::kPrompt, 0, head_runs + (first ? noise_runs : 0), plan.places.head};
      if (index >= head_blocks) {
        index -= head_blocks;
        part = {philox::kPrompt, first_noise, noise_runs, plan.places.labels};
      }
    }
    draw_block(p.range.stream(item.first_prompt + prompt, part.stream), part, index,
               memory + prompt * plan.places.size);
  }
}

// ROWS rows of a matrix, of which `rows` are there, times one token: Σ_j m_rj x_j over j < depth.
template <int ROWS, class T>
__device__ __forceinline__ void multiply_rows(const T* matrix, int row_stride, int rows, int depth, const T* x,
                                              int step, T (&sums)[ROWS]) {
  const T* row[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    row[r] = matrix + std::min(r, rows - 1) * int64_t{row_stride};
    sums[r] = T(0);
  }
  for (int j = 0; j < depth; ++j) {
    const T value = x[j * step];
    for (int r = 0; r < ROWS; ++r) sums[r] = std::fma(row[r][j], value, sums[r]);
  }
}

// A tile of one of the item's prompts, some rows of a matrix and a token: a thread's share of a product.
struct ProductShare {
  int prompt, tile, first_row, lane;
};

__device__ __forceinline__ ProductShare product_share(int work, const Divisor& by_groups, int rows,
                                                      const SamplerPlan& plan, const SampledItem& item) {
  const int of_tile = work / philox::kLanes, all_tiles = by_groups.quotient(of_tile);
  const int prompt = item.prompts == 1 ? 0 : plan.by_tiles.quotient(all_tiles);
  return {prompt, item.prompts == 1 ? all_tiles : plan.by_tiles.remainder(all_tiles, prompt),
          by_groups.remainder(of_tile, all_tiles) * rows, work % philox::kLanes};
}

// x = A ξ of the context.
template <class T>
__device__ __forceinline__ void correlate(const MultiTaskParams<T>& p, const SamplerPlan& plan,
                                          const SampledItem& item, T* memory) {
  constexpr int rows = covariate_rows;
  const int dim_x = int(p.dim_x);
  const int groups = (dim_x + rows - 1) / rows;
  const int all = item.prompts * item.tiles * groups * philox::kLanes;
  for (int work = int(threadIdx.x); work < all; work += int(blockDim.x)) {
    const ProductShare share = product_share(work, plan.by_covariate_groups, rows, plan, item);
    const int there = std::min(rows, dim_x - share.first_row);
    const T* factor = p.covariance_factor + share.first_row * p.dim_x;
    T* numbers = memory + share.prompt * plan.places.size;
    const int token = share.tile * dim_x * run_places + share.lane;
    T sums[rows];
    multiply_rows(factor, dim_x, there, share.first_row + there, numbers + token, run_places, sums);
    T* x = numbers + plan.places.x + token + share.first_row * run_places;
    for (int r = 0; r < there; ++r) x[r * run_places] = sums[r];
  }
}

// The query's covariates, kept and written, with zeros in its labels' place.
template <class T>
__device__ __forceinline__ void make_queries(const MultiTaskParams<T>& p, const SamplerPlan& plan,
                                             const SampledItem& item, T* memory) {
  const int dim_x = int(p.dim_x), dim = dim_x + int(p.n_tasks);
  for (int work = int(threadIdx.x); work < item.prompts * dim; work += int(blockDim.x)) {
    const OfPrompt column = of_prompt(work, dim, item);
    T* numbers = memory + column.prompt * plan.places.size;
    const T* xi = numbers + plan.places.head;
    T x = T(0);
    if (column.rest < dim_x) {
      if (p.covariance_factor) {
        const T* factor = p.covariance_factor + column.rest * p.dim_x;
        for (int j = 0; j <= column.rest; ++j) x = std::fma(factor[j], xi[in_runs(j)], x);
      } else {
        x = xi[in_runs(column.rest)];
      }
      numbers[plan.places.query + column.rest] = x;
    }
    p.query[(item.first_prompt + column.prompt) * dim + column.rest] = x;
  }
}

template <class T>
__device__ __forceinline__ void make_coefficients(const MultiTaskParams<T>& p, const SamplerPlan& plan,
                                                  const SampledItem& item, T* memory) {
  const int each = int(p.n_tasks * p.dim_x);
  for (int work = int(threadIdx.x); work < item.prompts * each; work += int(blockDim.x)) {
    const OfPrompt entry = of_prompt(work, each, item);
    T* numbers = memory + entry.prompt * plan.places.size;
    const T normal = numbers[plan.places.head + in_runs(int(philox::first_coefficient(p.dim_x)) + entry.rest)];
    numbers[plan.places.coefficients + entry.rest] = p.coefficient_scale[entry.rest] * normal;
  }
}

// y = βᵀx + σ ε of the context, in place of ε.
template <int ROWS, class T>
__device__ __forceinline__ void label(const MultiTaskParams<T>& p, const SamplerPlan& plan,
                                      const SampledItem& item, T* memory) {
  const int dim_x = int(p.dim_x), n_tasks = int(p.n_tasks);
  const bool noisy = p.noise_std > T(0);
  const int groups = (n_tasks + ROWS - 1) / ROWS;
  const int all = item.prompts * item.tiles * groups * philox::kLanes;
  for (int work = int(threadIdx.x); work < all; work += int(blockDim.x)) {
    const ProductShare share = product_share(work, plan.by_label_groups, ROWS, plan, item);
    const int there = std::min(ROWS, n_tasks - share.first_row);
    T* numbers = memory + share.prompt * plan.places.size;
    const T* x = numbers + plan.places.x + share.tile * dim_x * run_places + share.lane;
    T sums[ROWS];
    multiply_rows(numbers + plan.places.coefficients + share.first_row * dim_x, dim_x, there, dim_x, x,
                  run_places, sums);
    T* y = numbers + plan.places.labels + (share.tile * n_tasks + share.first_row) * run_places + share.lane;
    for (int r = 0; r < there; ++r) {
      y[r * run_places] = noisy ? std::fma(p.noise_std, y[r * run_places], sums[r]) : sums[r];
    }
  }
}

template <class T>
__device__ __forceinline__ void make_targets(const MultiTaskParams<T>& p, const SamplerPlan& plan,
                                             const SampledItem& item, T* memory) {
  const int dim_x = int(p.dim_x), n_tasks = int(p.n_tasks);
  for (int work = int(threadIdx.x); work < item.prompts * n_tasks; work += int(blockDim.x)) {
    const OfPrompt task = of_prompt(work, n_tasks, item);
    const T* numbers = memory + task.prompt * plan.places.size;
    const T *beta = numbers + plan.places.coefficients + task.rest * dim_x, *query = numbers + plan.places.query;
    T y = T(0);
    for (int j = 0; j < dim_x; ++j) y = std::fma(beta[j], query[j], y);
    if (p.noisy_target && p.noise_std > T(0)) {
      const int noise = int(philox::first_query_noise(dim_x, n_tasks)) + task.rest;
      y = std::fma(p.noise_std, numbers[plan.places.head + in_runs(noise)], y);
    }
    p.target[(item.first_prompt + task.prompt) * p.n_tasks + task.rest] = y;
  }
}

// The item's context, which is one piece of the output: four numbers at a time that stand on a multiple of four.
template <class T>
__device__ __forceinline__ void write_context(const MultiTaskParams<T>& p, const SamplerPlan& plan,
                                              const SampledItem& item, const T* memory) {
  const int dim_x = int(p.dim_x), n_tasks = int(p.n_tasks), dim = dim_x + n_tasks;
  const int64_t begin = (item.first_prompt * p.context_length + item.first_token) * dim;
  const int before = int(begin % 4), count = item.prompts * item.tokens * dim;
  const bool aligned = reinterpret_cast<uintptr_t>(p.context) % alignof(Four<T>) == 0;
  T* out = p.context + begin;
  for (int four = 4 * int(threadIdx.x) - before; four < count; four += 4 * int(blockDim.x)) {
    const int from = std::max(four, 0), there = std::min(four + 4, count) - from;
    int row = plan.by_dim.quotient(from), column = plan.by_dim.remainder(from, row);
    Four<T> values;
    for (int i = 0; i < 4; ++i) {
      if (i >= there) break;
      const int prompt = item.prompts == 1 ? 0 : plan.by_length.quotient(row);
      const int token = item.prompts == 1 ? row : plan.by_length.remainder(row, prompt);
      const T* numbers = memory + prompt * plan.places.size;
      const int tile = token / philox::kTile;
      const T* place = column < dim_x ? numbers + plan.places.x + (tile * dim_x + column) * run_places
                                      : numbers + plan.places.labels + (tile * n_tasks + column - dim_x) * run_places;
      values.x[i] = place[token % philox::kTile];
      if (++column == dim) {
        column = 0;
        ++row;
      }
    }
    if (aligned && there == 4) {
      store_four(out + from, values);
    } else {
      for (int i = 0; i < 4; ++i) {
        if (i < there) out[from + i] = values.x[i];
      }
    }
  }
}

}  // namespace mhicl::cuda
