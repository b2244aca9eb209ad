#include "kernels_headers.h"

#ifdef MHICL_X86

#pragma GCC push_options
#pragma GCC target("avx2,fma")

#define MHICL_ISA_NAMESPACE avx2
#define MHICL_ISA_AVX2 1
#define MHICL_VECTOR_BYTES 32
#include "kernels.inl"

#pragma GCC pop_options

#endif
