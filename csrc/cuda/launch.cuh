// Launches a kernel on a stream, or on the emulator.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

#include <cstdint>

#include "ptx.cuh"

namespace ddsm {

struct LaunchShape {
  int64_t blocks, blocks_y;
  int threads;
  int64_t shared_bytes;
};

#ifdef __CUDACC__

// Null, or what the launch reported.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), const LaunchShape& shape, void* stream,
                   const Arguments&... arguments) {
  cudaError_t error = cudaSuccess;
  if (shape.shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shape.shared_bytes));
  }
  if (error == cudaSuccess) {
    const dim3 grid(static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.blocks_y));
    kernel<<<grid, shape.threads, shape.shared_bytes, static_cast<cudaStream_t>(stream)>>>(
        arguments...);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Multiprocessors of the current device; 0 if it does not say.
inline int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return 0;
  }
  return count;
}

// True if the current device runs sm_90a code and this build has some.
inline bool has_sm90a() {
#ifdef DDSM_SM90A
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
#else
  return false;
#endif
}

#else

template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), const LaunchShape& shape, void*,
                   const Arguments&... arguments) {
  const simt::Grid grid{static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.blocks_y)};
  return simt::run(grid, shape.threads, static_cast<size_t>(shape.shared_bytes),
                   [&] { kernel(arguments...); });
}

inline int multiprocessors() { return 4; }
inline bool has_sm90a() { return simt::is_hopper(); }

#endif

}  // namespace ddsm
