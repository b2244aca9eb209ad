#include "kernels_headers.h"

#define MHICL_ISA_NAMESPACE portable
#define MHICL_VECTOR_BYTES 16
#include "kernels.inl"
