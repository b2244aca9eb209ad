#include "gemm.cuh"

#include <algorithm>
#include <cmath>
#include <utility>

namespace mhicl::cuda {
namespace {

using LargeTile = GemmTile<64, 64, 16, 8, 4>;
using SmallTile = GemmTile<32, 32, 16, 4, 2>;  // where large ones are too few to keep a GPU busy
using FlatTile = GemmTile<8, 64, 32, 4, 1>;

constexpr int64_t few_rows = FlatTile::rows;
constexpr int64_t enough_tiles = 108;  // a block for each multiprocessor of an A100
constexpr int64_t most_blocks = (int64_t{1} << 31) - 1;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Tile, class T>
int64_t tiles_of(const GemmParams<T>& p) {
  return p.batch * divide_up(p.rows, Tile::rows) * divide_up(p.cols, Tile::cols);
}

// The product itself or its transpose, Cᵀ = Bᵀ Aᵀ: whichever has few rows rather than few columns, and else its columns
// where memory runs on.
template <class T>
GemmParams<T> turned(const GemmParams<T>& p) {
  const bool few = std::min(p.rows, p.cols) <= few_rows;
  const bool turn = few ? p.cols < p.rows : std::abs(p.c.row) < std::abs(p.c.column);
  if (!turn) return p;
  GemmParams<T> t = p;
  std::swap(t.rows, t.cols);
  t.a = {p.b.data, p.b.column, p.b.row, p.b.batch};
  t.b = {p.a.data, p.a.column, p.a.row, p.a.batch};
  t.c = {p.c.data, p.c.column, p.c.row, p.c.batch};
  return t;
}

template <class T, class Tile, class Units>
cudaError_t multiply(const GemmParams<T>* products, int count, int64_t whole_depth, cudaStream_t stream) {
  GemmJobs<T> jobs = {};
  for (int i = 0; i < count; ++i) {
    const GemmParams<T>& p = products[i];
    const int64_t tiles = tiles_of<Tile>(p);
    if (tiles == 0) continue;
    jobs.job[jobs.count++] = {.product = p,
                              .whole_depth = whole_depth,
                              .tile_rows = divide_up(p.rows, Tile::rows),
                              .tiles = tiles,
                              .a_along_depth = std::abs(p.a.column) < std::abs(p.a.row),
                              .b_along_depth = std::abs(p.b.row) < std::abs(p.b.column)};
    jobs.tiles += tiles;
  }
  if (jobs.tiles == 0) return cudaSuccess;
  return launch(gemm_kernel<T, Tile, Units>, dim3(unsigned(std::min(jobs.tiles, most_blocks))), dim3(Tile::threads),
                GemmShared<T, Tile, Units>::bytes, stream, jobs);
}

// All in tiles of one kind: flat ones where all have few rows, or else by how many there are.
template <class T>
cudaError_t multiply_all(const GemmParams<T>* products, int count, int64_t whole_depth, cudaStream_t stream) {
  int64_t large = 0, most_rows = 0;
  for (int i = 0; i < count; ++i) {
    large += tiles_of<LargeTile>(products[i]);
    most_rows = std::max(most_rows, products[i].rows);
  }
  if constexpr (std::is_same_v<T, float>) {
    if (products[0].tf32) return multiply<T, LargeTile, GemmMatrixUnits<LargeTile>>(products, count, whole_depth, stream);
  }
  if (most_rows <= few_rows) return multiply<T, FlatTile, GemmLanes<T, FlatTile>>(products, count, whole_depth, stream);
  if (large < enough_tiles) {
    return multiply<T, SmallTile, GemmLanes<T, SmallTile>>(products, count, whole_depth, stream);
  }
  return multiply<T, LargeTile, GemmLanes<T, LargeTile>>(products, count, whole_depth, stream);
}

struct Slices {
  int64_t count, depth;
};

// Enough to keep a GPU busy and each to few thousand terms, but not so many that the partial sums outweigh the factors. Not
// less for a longer depth.
template <class T>
int64_t most_slices(const GemmParams<T>& p) {
  constexpr int64_t blocks = 256, shortest = 64, longest = 4096, room = int64_t{1} << 26, least = 64;
  const int64_t tiles = std::max<int64_t>(1, tiles_of<LargeTile>(p));
  const int64_t bytes = std::max<int64_t>(1, p.rows * p.cols * int64_t(sizeof(T)));
  const int64_t wanted = std::max(blocks / tiles, divide_up(p.depth, longest));
  return std::clamp<int64_t>(std::min(wanted, std::max(least, room / bytes)), 1,
                             std::max<int64_t>(1, divide_up(p.depth, shortest)));
}

// So many or fewer, since each is a whole number of tiles deep.
template <class T>
Slices slices_of(const GemmParams<T>& p) {
  const int64_t depth = divide_up(divide_up(p.depth, most_slices(p)), LargeTile::depth) * LargeTile::depth;
  return {depth ? divide_up(p.depth, depth) : 0, depth};
}

}  // namespace

template <class T>
cudaError_t gemm_group(const GemmParams<T>* products, int count, cudaStream_t stream) {
  GemmParams<T> as_worked[most_products];
  if (count > most_products) return cudaErrorInvalidValue;
  for (int i = 0; i < count; ++i) {
    as_worked[i] = turned(products[i]);
    as_worked[i].tf32 = false;
  }
  return multiply_all(as_worked, count, 0, stream);
}

template <class T>
cudaError_t gemm(const GemmParams<T>& product, cudaStream_t stream) {
  const GemmParams<T> as_worked = turned(product);
  return multiply_all(&as_worked, 1, 0, stream);
}

template <class T>
int64_t sliced_workspace_bytes(const GemmParams<T>& product) {
  return most_slices(product) * product.rows * product.cols * int64_t(sizeof(T));
}

template <class T>
cudaError_t sliced_gemm(const GemmParams<T>& product, bool accumulate, void* workspace, double* sums,
                        cudaStream_t stream) {
  const Slices slices = slices_of(product);
  const int64_t size = product.rows * product.cols;
  if (size == 0) return cudaSuccess;
  GemmParams<T> p = product;
  p.batch = slices.count;
  p.depth = slices.depth;
  p.a.batch = slices.depth * p.a.column;
  p.b.batch = slices.depth * p.b.row;
  p.c = {static_cast<T*>(workspace), p.cols, 1, size};
  p.accumulate = false;
  p = turned(p);
  const cudaError_t error = multiply_all(&p, 1, product.depth, stream);
  if (error != cudaSuccess) return error;
  constexpr int64_t threads = 256, enough_blocks = 4096;
  return launch(add_slices_kernel<T>, dim3(unsigned(std::min(divide_up(size, threads), enough_blocks))), dim3(threads), 0,
                stream, static_cast<const T*>(workspace), slices.count, size, accumulate, sums);
}

#define MHICL_GEMM(T)                                                                              \
  template cudaError_t gemm<T>(const GemmParams<T>&, cudaStream_t);                                \
  template cudaError_t gemm_group<T>(const GemmParams<T>*, int, cudaStream_t);                     \
  template int64_t sliced_workspace_bytes<T>(const GemmParams<T>&);                                \
  template cudaError_t sliced_gemm<T>(const GemmParams<T>&, bool, void*, double*, cudaStream_t);
MHICL_GEMM(float)
MHICL_GEMM(double)
#undef MHICL_GEMM

}  // namespace mhicl::cuda
