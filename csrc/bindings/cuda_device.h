// What every CUDA binding needs: a stream, launch errors.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "tensor.h"

namespace ddsm::binding {

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
