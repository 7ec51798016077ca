// Lets the CUDA bindings run on CPU tensors with the emulated kernels: the few functions that they
// take from a CUDA torch, and memory checks off (the bindings' tensors are not announced to them).
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "../../csrc/cuda/emulator/simt.h"

extern "C" {

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

}  // extern "C"

namespace {
const bool announced = [] {
  ddsm::simt::allow_memory(reinterpret_cast<void*>(1), uint64_t(1) << 62, true);
  return true;
}();
}  // namespace
