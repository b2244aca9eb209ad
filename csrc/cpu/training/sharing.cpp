#include "sharing.h"

#include <algorithm>
#include <bit>

#include "../step/step.h"

namespace mhicl {
namespace {

constexpr int64_t kMostSlices = 64;

int64_t chunk_count(int64_t n_prompts) { return (n_prompts + kStepChunk - 1) / kStepChunk; }

// The share of `part` of `parts` in `whole`.
Range share_of(Range whole, int64_t part, int64_t parts) {
  return {whole.begin + whole.size() * part / parts, whole.begin + whole.size() * (part + 1) / parts};
}

// Fixed shares of the prompts, whole chunks each: enough to share the work out, few enough that their sums stay small
// beside it, and in memory.
int64_t slice_count(int64_t n_prompts, const SliceCost& cost) {
  constexpr int64_t room = int64_t(1) << 25;
  const int64_t affordable = n_prompts * cost.numbers_a_prompt / (4 * std::max<int64_t>(1, cost.sums));
  const int64_t fitting = room / std::max<int64_t>(1, cost.bytes);
  return std::min<int64_t>({chunk_count(n_prompts), std::max<int64_t>(8, std::min(affordable, fitting)), kMostSlices});
}

// Where a node of the tree is divided in two.
int64_t middle(Range node) { return node.begin + int64_t(std::bit_ceil(uint64_t(node.size())) / 2); }

// The highest nodes below and including `node` that lie within `block`, in order.
void collect(Range node, Range block, std::vector<Range>& found) {
  if (node.begin >= block.end || node.end <= block.begin || node.size() == 0) return;
  if (node.begin >= block.begin && node.end <= block.end) {
    found.push_back(node);
    return;
  }
  collect({node.begin, middle(node)}, block, found);
  collect({middle(node), node.end}, block, found);
}

// Nodes whose rows of numbers are there.
struct Known {
  std::vector<Range> nodes;
  std::vector<double*> rows;
};

// Adds up the rows below `node`, the next of which is known[next], into the first of them.
double* climb(Range node, const Known& known, size_t& next, int64_t width) {
  if (known.nodes[next] == node) return known.rows[next++];
  double* left = climb({node.begin, middle(node)}, known, next, width);
  const double* right = climb({middle(node), node.end}, known, next, width);
  for (int64_t i = 0; i < width; ++i) left[i] += right[i];
  return left;
}

}  // namespace

Sharing::Sharing(const GroupSpec& group, int64_t n_prompts, const SliceCost& cost)
    : n_prompts_(n_prompts), width_(cost.sums + 1) {
  const Range all = {0, chunk_count(n_prompts)};
  size_t most_rows = 1;
  if (group.tree) {
    chunks_ = all;
    cuts_ = slice_count(n_prompts, cost);
    own_ = share_of({0, cuts_}, group.rank, group.size);
    for (int64_t rank = 0; rank < group.size; ++rank) {
      everyones_.emplace_back();
      collect({0, cuts_}, share_of({0, cuts_}, rank, group.size), everyones_.back());
      most_rows = std::max(most_rows, everyones_.back().size());
    }
    for (const Range row : everyones_[group.rank]) rows_.push_back({row.begin - own_.begin, row.end - own_.begin});
  } else {
    chunks_ = share_of(all, group.rank, group.size);
    cuts_ = slice_count(std::min(chunks_.end * kStepChunk, n_prompts) - chunks_.begin * kStepChunk, cost);
    own_ = {0, cuts_};
    if (cuts_ > 0) rows_.push_back(own_);
  }
  message_.resize(int64_t(most_rows) * width_ + 1);
}

Range Sharing::prompts(int64_t slice) const {
  const Range chunks = share_of(chunks_, own_.begin + slice, cuts_);
  return {chunks.begin * kStepChunk, std::min(chunks.end * kStepChunk, n_prompts_)};
}

Sharing::Total Sharing::exchange(Peers& peers, bool stop) {
  message_.back() = stop;
  return everyones_.size() > 1 ? finished(peers) : reduced(peers);
}

Sharing::Total Sharing::reduced(Peers& peers) {
  if (rows_.empty()) std::fill_n(message_.begin(), width_, 0.0);  // the last total is in there
  peers.all_reduce(message_);
  return {message_.data(), message_[width_ - 1], message_.back() > 0};
}

Sharing::Total Sharing::finished(Peers& peers) {
  double* from = peers.all_gather(message_);
  Known known;
  bool stop = false;
  for (const std::vector<Range>& nodes : everyones_) {
    for (size_t i = 0; i < nodes.size(); ++i) known.rows.push_back(from + int64_t(i) * width_);
    known.nodes.insert(known.nodes.end(), nodes.begin(), nodes.end());
    from += message_.size();
    stop = stop || from[-1] > 0;
  }
  size_t next = 0;
  const double* root = climb({0, cuts_}, known, next, width_);
  return {root, root[width_ - 1], stop};
}

int useful_threads(const GroupSpec& group, int64_t n_prompts, int64_t threads) {
  const int64_t chunks = (chunk_count(n_prompts) + group.size - 1) / group.size;
  return int(std::min({threads, chunks, kMostSlices}));
}

}  // namespace mhicl
