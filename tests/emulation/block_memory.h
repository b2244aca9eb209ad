// A block's shared memory, and the asynchronous copies into it.
#pragma once

#include <cstddef>
#include <string>

#include "scheduler.h"

namespace emulation __attribute__((visibility("hidden"))) {

// New shared memory of exactly this size, full of NaN.
void start_block_memory(size_t bytes, int threads);
// What was damaged beyond it; empty if nothing was.
std::string end_block_memory();

char* shared_begin();

// A copy's bytes arrive when its thread waits for the group they are in; until then there is NaN at the destination.
void start_copy(void* shared, const void* global, int bytes, Line line);
void close_copies();
void finish_copies(int pending_groups);

}  // namespace emulation
