#include "layout.h"

#include <algorithm>

namespace mhicl::cuda {
namespace {

constexpr int kStatistics = 6;  // numbers kept of each head
constexpr int64_t kTokensOfWarp = 64;

int64_t up_to_multiple(int64_t count, int64_t of) { return (count + of - 1) / of * of; }

AttendLayout with_chunk(const AttendDemand& demand, int64_t chunk, bool resident) {
  AttendLayout layout = {};
  const int64_t per_group = demand.heads_at_once;
  layout.rows = int(demand.rows);
  layout.heads = int(demand.heads);
  layout.groups = int((demand.heads + per_group - 1) / per_group);
  layout.warps = int(std::clamp<int64_t>((chunk + kTokensOfWarp - 1) / kTokensOfWarp, 1, kMostWarps));
  layout.chunk = int(chunk);
  layout.resident = resident;
  layout.token_stride = int(demand.rows | 1);
  layout.panel_stride = int(up_to_multiple(demand.rows, 4));
  layout.table_stride = int((up_to_multiple(chunk, 4) / 4 | 1) * 4);
  layout.table_rows = int(resident || demand.all_weights ? layout.groups * per_group : per_group);
  int64_t taken = up_to_multiple(up_to_multiple(chunk, 4) * layout.token_stride, 4);
  const auto take = [&](int64_t elements) {
    const int64_t begin = taken;
    taken += up_to_multiple(elements, 4);
    return int(begin);
  };
  layout.table = take(int64_t(layout.table_rows) * layout.table_stride);
  layout.products = demand.own_products ? take(per_group * layout.table_stride) : -1;
  layout.panel = take(2 * per_group * layout.panel_stride);
  layout.partial = take(layout.warps * per_group * demand.rows);
  layout.statistics = take(kStatistics * layout.groups * per_group);
  layout.extra = take(demand.extra);
  layout.bytes = taken * demand.element_size;
  return layout;
}

}  // namespace

bool make_layout(const AttendDemand& demand, const DeviceLimits& limits, AttendLayout& layout) {
  const int64_t room = limits.shared_per_block;
  const AttendLayout resident = with_chunk(demand, demand.context_length, true);
  // With chunks and the weights of several groups of heads, each group would compute those of all again.
  const bool chunks_cost = demand.all_weights && resident.groups > 1;
  layout = resident;
  if (layout.bytes <= (chunks_cost ? room : room / 2)) return true;
  // One block a multiprocessor would leave nothing to do while it waits; four hide each other's waits.
  const auto fits = [&](int64_t least, int64_t bytes) {
    for (int64_t chunk = 1024; chunk >= least; chunk /= 2) {
      layout = with_chunk(demand, chunk, false);
      if (layout.bytes <= bytes) return true;
    }
    return false;
  };
  if (fits(64, room / 4)) return true;
  layout = resident;
  return layout.bytes <= room || fits(16, room);
}

}  // namespace mhicl::cuda
