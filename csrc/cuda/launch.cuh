// Launches a kernel on a stream, or on the emulator.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "ptx.cuh"

namespace ddsm {

struct LaunchShape {
  int64_t blocks, blocks_y;
  int threads;
  int64_t shared_bytes;
  // The kernel may begin while the one before it in the stream ends (programmatic dependent launch,
  // where the device runs sm_90a code): until ptx::wait_for_kernel_before it then touches nothing
  // but memory that no kernel of the stream writes.
  bool overlaps = false;
};

// True unless the environment says 0.
inline bool is_wanted(const char* variable) {
  const char* value = getenv(variable);
  return !value || strcmp(value, "0") != 0;
}
// DDSM_SM90A=0 turns everything off that only sm_90a has; DDSM_OVERLAP=0 lets no kernel begin
// while the one before it ends.
inline bool wants_sm90a() { return is_wanted("DDSM_SM90A"); }
inline bool wants_overlap() { return is_wanted("DDSM_OVERLAP"); }

#ifdef __CUDACC__

// True if the current device runs sm_90a code, this build has some, and it is wanted.
inline bool has_sm90a() {
#ifdef DDSM_SM90A
  static const bool wanted = wants_sm90a();
  int device = 0, major = 0, minor = 0;
  return wanted && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
#else
  return false;
#endif
}

// Null, or what the launch reported. `name`: of the kernel, in that report.
template <class... Parameters, class... Arguments>
const char* launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape,
                   void* stream, const Arguments&... arguments) {
  cudaError_t error = cudaSuccess;
  if (shape.shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shape.shared_bytes));
  }
  if (error == cudaSuccess) {
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks),
                          static_cast<unsigned>(shape.blocks_y));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &overlap;
    static const bool wanted = wants_overlap();
    config.numAttrs = wanted && shape.overlaps && has_sm90a() ? 1 : 0;
    error = cudaLaunchKernelEx(&config, kernel, arguments...);
    if (error != cudaSuccess) cudaGetLastError();  // it must not be reported to another call
  }
  if (error == cudaSuccess) return nullptr;
  thread_local char report[256];
  snprintf(report, sizeof report, "%s: %s", name, cudaGetErrorString(error));
  return report;
}

// Sets memory to 0, in the stream's order; null, or why not.
inline const char* clear(void* data, size_t bytes, void* stream) {
  const cudaError_t error = cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(stream));
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

#else

inline bool has_sm90a() { return simt::is_hopper() && wants_sm90a(); }

template <class... Parameters, class... Arguments>
const char* launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, void*,
                   const Arguments&... arguments) {
  const simt::Launch started{name,
                             {static_cast<unsigned>(shape.blocks),
                              static_cast<unsigned>(shape.blocks_y)},
                             shape.threads,
                             static_cast<size_t>(shape.shared_bytes),
                             wants_overlap() && shape.overlaps && has_sm90a()};
  return simt::run(started, [&] { kernel(arguments...); });
}

inline const char* clear(void* data, size_t bytes, void*) {
  simt::launches().push_back({"clear", {}, 1, 0, false});
  memset(data, 0, bytes);
  return nullptr;
}

inline int multiprocessors() { return simt::multiprocessors(); }

#endif

}  // namespace ddsm
