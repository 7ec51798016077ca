// C entry points of the emulated kernels, for emulated.py.
#include <cstdint>

#include "../../csrc/cuda/emulator/simt.h"
#include "ddsm/conv2d_cuda.h"

extern "C" {

void allow_memory(const void* data, uint64_t bytes, int writable) {
  ddsm::simt::allow_memory(data, bytes, writable != 0);
}
void forget_memory() { ddsm::simt::forget_memory(); }

#define DDSM_ENTRY(op, Args)                                                           \
  int64_t op##_bytes(const ddsm::Args* args) {                                         \
    return ddsm::op##_cuda_workspace_bytes(*args);                                     \
  }                                                                                    \
  const char* op(const ddsm::Args* args) { return ddsm::op##_cuda(*args, nullptr); }   \
  int64_t op##_args_bytes() { return sizeof(ddsm::Args); }

DDSM_ENTRY(conv2d_forward, Conv2dCudaForwardArgs)
DDSM_ENTRY(conv2d_grad_x, Conv2dCudaGradXArgs)
DDSM_ENTRY(conv2d_grad_weight, Conv2dCudaGradWeightArgs)

}  // extern "C"
