// Where the operators are registered: in the library mhicl, and those for GPUs under the key CUDA. Tests build the GPU's
// sources a second time, for the CPU, under names of their own.
#pragma once

#include <torch/library.h>

#ifndef MHICL_LIBRARY
#define MHICL_LIBRARY mhicl
#define MHICL_GPU_KEY CUDA
#endif

// One step more than torch's macros, so that names are expanded before those paste them together.
#define MHICL_DEFINE(library, m) TORCH_LIBRARY(library, m)
#define MHICL_IMPLEMENT(library, key, m) TORCH_LIBRARY_IMPL(library, key, m)

#define MHICL_OPERATORS(m) MHICL_DEFINE(MHICL_LIBRARY, m)
#define MHICL_GPU_OPERATORS(m) MHICL_IMPLEMENT(MHICL_LIBRARY, MHICL_GPU_KEY, m)
