// How the prompts are shared out over blocks, and where a block keeps what it draws.
#pragma once

#include <algorithm>

#include "../../sampler_params.h"
#include "../divisor.h"
#include "../launchers.h"

namespace mhicl::cuda {

inline constexpr int sampler_threads = 256;

// 16 numbers that follow each other in a stream, and a place left empty, so that the columns of a tile begin in
// different banks of shared memory.
inline constexpr int run_places = philox::kLanes + 1;

// The place of element e of numbers that are kept in runs.
MHICL_HOST_DEVICE constexpr int in_runs(int e) { return e + e / philox::kLanes; }

// Matrix rows that a thread multiplies with a token at a time.
inline constexpr int covariate_rows = 4;
MHICL_HOST_DEVICE constexpr int label_rows(int64_t n_tasks) { return n_tasks < covariate_rows ? 1 : covariate_rows; }

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A prompt's memory, in numbers: ξ, the numbers of the stream PROMPT and behind them the noise of the context's labels,
// which the labels replace, x where it is not ξ, all in runs; the query's covariates and the coefficients, row by row.
template <class Size>
struct PromptPlaces {
  Size head, labels, x, query, coefficients, size;

  template <class T>
  PromptPlaces(const MultiTaskParams<T>& p, int64_t tiles)
      : head(Size(tiles * p.dim_x * run_places)),
        labels(Size(head + philox::first_context_noise(p.dim_x, p.n_tasks) / philox::kLanes * run_places)),
        x(Size(p.covariance_factor ? labels + tiles * p.n_tasks * run_places : 0)),
        query(Size(labels + tiles * (p.n_tasks + (p.covariance_factor ? p.dim_x : 0)) * run_places)),
        coefficients(Size(query + p.dim_x)),
        size(Size(coefficients + p.n_tasks * p.dim_x)) {}
};

// Blocks of Philox that draw so many runs from `first_run` on: whole groups.
MHICL_HOST_DEVICE constexpr int philox_blocks(int64_t first_run, int runs) {
  const int into_group = int(first_run % philox::kWords);
  return runs == 0 ? 0 : (into_group + runs + philox::kWords - 1) / philox::kWords * philox::kLanes;
}

// A block of threads makes one item after the other: a few prompts, or of one prompt a chunk of the context. Each item
// draws its prompts' coefficients; the one with a prompt's first tokens also makes the query.
struct SamplerPlan {
  int64_t n_prompts, chunks, items;
  int prompts, tiles;  // of an item, at most
  PromptPlaces<int> places;
  Divisor by_philox_blocks, by_tiles, by_length;  // what one prompt has; for items of several
  Divisor by_dim, by_covariate_groups, by_label_groups;
  bool in_shared_memory;
  int blocks;

  MHICL_HOST_DEVICE int64_t numbers() const { return int64_t{prompts} * places.size; }  // that a block keeps
};

// Numbers that a block keeps where it can choose: few enough for several blocks to run beside each other.
inline constexpr int64_t usual_numbers = 6144;

// Tiles of the context that are kept together: at least a few if that leaves room for two blocks, one if it fits at all,
// a few if memory outside is needed anyway.
template <class T>
int64_t tiles_together(const MultiTaskParams<T>& p, int64_t most_bytes) {
  constexpr int64_t few = 4;
  const int64_t most = most_bytes / int64_t{sizeof(T)};
  const int64_t fixed = PromptPlaces<int64_t>(p, 0).size, each = PromptPlaces<int64_t>(p, 1).size - fixed;
  const auto that_fit = [&](int64_t numbers) { return std::max<int64_t>(0, (numbers - fixed) / each); };
  const int64_t tiles = std::max(that_fit(std::min(usual_numbers, most)), std::min(few, that_fit(most / 2)));
  return tiles > 0 ? tiles : that_fit(most) > 0 ? 1 : few;
}

// Whether a prompt's places can be told by an int.
template <class T>
bool can_be_planned(const MultiTaskParams<T>& p, const DeviceLimits& limits) {
  return PromptPlaces<int64_t>(p, tiles_together(p, limits.shared_per_block)).size < int64_t{1} << 31;
}

// Blocks of Philox for a prompt that is one chunk.
template <class T>
int64_t blocks_of_prompt(const MultiTaskParams<T>& p, int64_t tiles) {
  const int64_t head = philox::first_context_noise(p.dim_x, p.n_tasks) / philox::kLanes;
  const int64_t noise = p.noise_std > T(0) ? tiles * p.n_tasks : 0;
  return philox_blocks(0, int(tiles * p.dim_x)) + philox_blocks(0, int(head + noise));
}

template <class T>
SamplerPlan sampler_plan(const MultiTaskParams<T>& p, int64_t n_prompts, const DeviceLimits& limits) {
  const int64_t all_tiles = philox::tiled_size(p.context_length, 1) / philox::kTile;
  const int64_t chunks = std::max<int64_t>(1, divide_up(all_tiles, tiles_together(p, limits.shared_per_block)));
  const int64_t tiles = divide_up(all_tiles, chunks);
  const PromptPlaces<int> places(p, tiles);

  // Short prompts share a block, unless the device is large enough for each to have one.
  const int64_t together =
      std::clamp<int64_t>(usual_numbers / places.size, 1, divide_up(n_prompts, 2 * limits.multiprocessors));
  const int64_t prompts = chunks == 1 ? together : 1, items = divide_up(n_prompts, prompts) * chunks;
  const bool in_shared_memory = prompts * places.size * int64_t{sizeof(T)} <= limits.shared_per_block;
  const int64_t blocks = std::min<int64_t>(items, (in_shared_memory ? 32 : 2) * limits.multiprocessors);
  return {
      .n_prompts = n_prompts,
      .chunks = chunks,
      .items = items,
      .prompts = int(prompts),
      .tiles = int(tiles),
      .places = places,
      .by_philox_blocks = Divisor(blocks_of_prompt(p, tiles)),
      .by_tiles = Divisor(std::max<int64_t>(1, tiles)),
      .by_length = Divisor(std::max<int64_t>(1, p.context_length)),
      .by_dim = Divisor(p.dim_x + p.n_tasks),
      .by_covariate_groups = Divisor(divide_up(p.dim_x, covariate_rows)),
      .by_label_groups = Divisor(std::max<int64_t>(1, divide_up(p.n_tasks, label_rows(p.n_tasks)))),
      .in_shared_memory = in_shared_memory,
      .blocks = int(blocks),
  };
}

}  // namespace mhicl::cuda
