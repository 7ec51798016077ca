// What every CUDA binding needs: one device, its stream, launch errors, a workspace.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "tensor.h"

namespace ddsm::binding {

// Kernels run where x is: another tensor elsewhere would be read through a foreign address.
inline void check_same_device(const char* op, const Tensor& x, const Tensor& other) {
  STD_TORCH_CHECK(same_device(other, x), op, ": the tensors are on different devices; need one");
}

// torch's current stream on the device of x.
inline void* stream_of(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return stream;
}

inline void check_launch(const char* op, const char* error) {
  STD_TORCH_CHECK(error == nullptr, op, ": ", error);
}

}  // namespace ddsm::binding
