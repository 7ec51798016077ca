// Marks functions that both the GPU and the host (launch code, tests) call. No CUDA header.
#pragma once

#ifdef __CUDACC__
#define DDSM_HOST_DEVICE __host__ __device__
#else
#define DDSM_HOST_DEVICE
#endif
