// The shapes of tiles, by the sizes of a problem.
#pragma once

#include <climits>

#include "tile.cuh"

namespace mhicl::cuda {

// Calls run(Tile) with the tile for sums over so many columns: the fewer, the fewer a thread has.
template <class T, int MINE, class Run>
cudaError_t with_columns(int64_t columns, const Run& run) {
  if (columns <= Tile<T, MINE, 1>::run) return run(Tile<T, MINE, 1>());
  if constexpr (sizeof(T) == 4) {
    if (columns > Tile<T, MINE, 4>::run) return run(Tile<T, MINE, 8>());
  }
  return run(Tile<T, MINE, 4>());
}

// With several own rows.
template <class T, class Run>
cudaError_t with_many(bool tf32, int64_t columns, const Run& run) {
  if constexpr (sizeof(T) == 4) {
    if (tf32) return columns <= MatrixTile<2, 8>::run ? run(MatrixTile<2, 8>()) : run(MatrixTile<2, 16>());
  }
  return with_columns<T, 4>(columns, run);
}

// With rows of a problem as a block's own.
template <class T, class Run>
cudaError_t with_rows(bool tf32, int64_t rows, int64_t columns, const Run& run) {
  return rows <= 2 ? with_columns<T, 1>(columns, run) : with_many<T>(tf32, columns, run);
}

// As many threads as own rows keep busy and shared memory allows: whole warps, a power of two.
template <class Tile, class Memory, class Call>
int threads_for(int64_t own, const Call& call, const DeviceLimits& limits) {
  int threads = kWarp;
  while (threads < Tile::most_threads && Tile::own(threads) < own &&
         Memory::bytes(call, 2 * threads) <= limits.shared_per_block) {
    threads *= 2;
  }
  return threads;
}

// Own blocks of all problems along x, runs of columns along y.
template <class Tile, class Memory, class Call>
cudaError_t launch_blocks(void (*kernel)(Call), Call& call, int64_t own, int64_t columns, const DeviceLimits& limits,
                          cudaStream_t stream) {
  const auto& p = call.params.attention;
  const int threads = threads_for<Tile, Memory>(own, call, limits);
  call.grid.own_blocks = blocks_of(own, Tile::own(threads));
  call.grid.blocks = p.batch * p.key_heads * call.grid.own_blocks;
  if (call.grid.blocks == 0) return cudaSuccess;  // a launch of no blocks is an error
  const dim3 grid(unsigned(std::min<int64_t>(call.grid.blocks, INT_MAX)), unsigned(runs_of(columns, Tile::run)));
  return launch(kernel, grid, dim3(unsigned(threads)), Memory::bytes(call, threads), stream, call);
}

}  // namespace mhicl::cuda
