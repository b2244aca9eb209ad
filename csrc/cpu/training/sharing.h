// Which of a step's prompts a process adds up, and how the sums of all processes become one.
//
// Prompts are cut into slices, each summed by one thread; slices are summed up a tree, in which a node over n ≥ 2 slices has
// the largest power of two below n of them on its left. By all-reduce, every process cuts its own prompts into slices, and
// its message is their sum. By tree, the slices are those that one process alone has; a process has consecutive ones, its
// message holds the sums at the highest nodes that it has in full, and each process finishes the tree from all messages:
// the same additions in the same order for any number of processes.
//
// A message is not sent in parts while prompts are still summed: every prompt adds to every number, so what the first ones
// come to would be a message of the same size sent earlier, and the last one would take no less time.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "peers.h"

namespace mhicl {

// From `begin` up to, not including, `end`.
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// What decides how many slices are worth while.
struct SliceCost {
  int64_t numbers_a_prompt, sums, bytes;  // bytes of a slice's sums
};

class Sharing {
 public:
  Sharing(const GroupSpec& group, int64_t n_prompts, const SliceCost& cost);

  // The slices of this process, from 0; prompts are counted among those of all processes.
  int64_t slices() const { return own_.size(); }
  Range prompts(int64_t slice) const;
  // The nodes that this process adds up itself, as ranges of its slices: row i of the message is the sum over range i.
  const std::vector<Range>& rows() const { return rows_; }
  // sums, then the loss.
  double* row(int64_t i) { return message_.data() + i * width_; }

  struct Total {
    const double* sums;
    double loss;
    bool stop;  // whether some process asked to stop
  };
  // Of all processes' rows. Throws PeersLost.
  Total exchange(Peers& peers, bool stop);

 private:
  Total reduced(Peers& peers);
  Total finished(Peers& peers);

  int64_t n_prompts_;
  int64_t width_;            // of a row
  Range chunks_;             // that are cut into slices
  int64_t cuts_;             // how many slices they are cut into
  Range own_;                // of those slices
  std::vector<Range> rows_;  // relative to the first own slice
  std::vector<std::vector<Range>> everyones_;  // by tree: the rows of each process, in slices of all
  std::vector<double> message_;                // rows, then whether this process asks to stop
};

// As many of `threads` as have prompts to work on: the others would be woken up at every step for nothing.
int useful_threads(const GroupSpec& group, int64_t n_prompts, int64_t threads);

}  // namespace mhicl
