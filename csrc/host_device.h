// A function for the host and, where the compiler knows of one, the device.
#pragma once

#if defined(__CUDACC__)
#define MHICL_HOST_DEVICE __host__ __device__
#else
#define MHICL_HOST_DEVICE
#endif
