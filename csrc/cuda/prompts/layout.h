// How a block's shared memory is dealt out to one prompt: its tokens, and the tables of a group of heads.
#pragma once

#include "../launchers.h"

namespace mhicl::cuda {

// What a kernel asks for.
struct AttendDemand {
  int64_t context_length, rows, heads;  // rows: numbers of a token
  int heads_at_once;                    // heads that a group has
  bool all_weights;                     // the weights of all heads together, not of a group only
  bool own_products;                    // a second table, so that weights outlive what they are multiplied by
  int64_t extra;                        // elements of the kernel's own
  int element_size;
};

// Offsets and strides count elements.
struct AttendLayout {
  int rows, heads, groups, warps;
  int chunk;         // tokens at a time: all of them, or a multiple of 16
  bool resident;     // all tokens and all weights stay, else every pass fetches tokens again
  int token_stride;  // odd, so that a warp reads a column of 32 tokens from all banks
  int panel_stride;  // a multiple of 4
  int table_stride;  // 4 times an odd number, so that 8 rows are read from all banks
  int table_rows;
  int table, products, panel, partial, statistics, extra;  // where they begin, behind the tokens
  int64_t bytes;
};

inline constexpr int kMostWarps = 4;

// False where not even 16 tokens fit.
bool make_layout(const AttendDemand& demand, const DeviceLimits& limits, AttendLayout& layout);

}  // namespace mhicl::cuda
