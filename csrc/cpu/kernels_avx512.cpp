#include "kernels_headers.h"

#ifdef MHICL_X86

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

#define MHICL_ISA_NAMESPACE avx512
#define MHICL_ISA_AVX512 1
#define MHICL_VECTOR_BYTES 64
#include "kernels.inl"

#pragma GCC pop_options

#endif
