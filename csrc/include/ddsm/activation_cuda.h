// Contract of sliced_activation on CUDA between bindings and kernels; activation.h says what is
// computed. Functions return null, or why they refused or what a launch reported.
#pragma once

#include <cstdint>

#include "ddsm/activation.h"

namespace ddsm {

// Rows of an image follow each other, and images do; strides count elements.
struct ActivationCudaArgs {
  DType dtype;  // of all tensors but grad_gate: float32, bfloat16, float16
  Activation activation;
  int64_t images, rows, columns;  // rows: of an image; columns: of y
  // inputs
  const void* z;  // [images * rows, columns]; kGeglu: 2 * columns, value and gate half
  int64_t z_stride;
  const void* gate;  // [images, columns]; null: one
  int64_t gate_stride;
  const void* residual;  // as y; null: zero. Forward only
  int64_t residual_stride;
  const void* grad_y;  // as y. Backward only
  int64_t grad_y_stride;
  // outputs, contiguous
  void* y;          // [images * rows, columns]
  void* grad_z;     // as z
  float* grad_gate;  // [images, columns], sums over an image's rows in one order; null: not wanted
  void* workspace;  // backward: activation_backward_cuda_workspace_bytes
};

int64_t activation_backward_cuda_workspace_bytes(const ActivationCudaArgs& args);

const char* activation_cuda(const ActivationCudaArgs& args, void* stream);
const char* activation_backward_cuda(const ActivationCudaArgs& args, void* stream);

}  // namespace ddsm
