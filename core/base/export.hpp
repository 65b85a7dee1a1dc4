// Visibility and host/device markers: with the registration macro, the only macros of the library.
#pragma once

#define RETICLE_API __attribute__((visibility("default")))

#if defined(__CUDACC__)
#define RETICLE_HD __host__ __device__
#else
#define RETICLE_HD
#endif
