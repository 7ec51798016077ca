// Contract of sliced_linear between bindings and kernels. No torch.
//
//   y[m, o] = bias[o] + shift[m, o] + sum over c of x[m, c] * weight[o, c]
// Strides count elements; x and the gradients of y have column stride 1.
#pragma once

#include <cstdint>

#include "ddsm/types.h"

namespace ddsm {

struct LinearWeight {
  void* data;  // [c_out_max, c_in_max]; only gradients are written
  DType dtype;
  int64_t out_stride, in_stride;
};

struct LinearForwardArgs {
  // inputs
  const void* x;  // [rows, c_in], float32 (float64 when y is float64)
  int64_t rows, c_in, x_row_stride;
  LinearWeight weight;
  const void* bias;   // [c_out] of weight.dtype; null: zero
  const void* shift;  // like y, added to it; null: zero
  // output
  void* y;  // [rows, c_out] contiguous
  DType y_dtype;
  int64_t c_out;
};

struct LinearGradXArgs {
  // inputs
  const void* grad_y;  // [rows, c_out], float32 (float64 when grad_x is float64)
  int64_t rows, c_out, grad_y_row_stride;
  LinearWeight weight;
  // output
  void* grad_x;  // [rows, c_in] contiguous
  DType grad_x_dtype;
  int64_t c_in;
};

struct LinearGradWeightArgs {
  // inputs
  const void* grad_y;  // [rows, c_out]
  const void* x;       // [rows, c_in]
  DType compute;       // kFloat32 or kFloat64, of both
  int64_t rows, c_out, c_in, grad_y_row_stride, x_row_stride;
  // outputs, added to
  LinearWeight grad_weight;
  void* grad_bias;  // [c_out] of grad_weight.dtype; null: not wanted
};

// False: out of memory, nothing usable was written.
bool linear_forward(const LinearForwardArgs& args);
// Layers of which none reads another's y; few rows are computed in parallel over all outputs.
bool linears_forward(const LinearForwardArgs* layers, int64_t count);
bool linear_grad_x(const LinearGradXArgs& args);
bool linear_grad_weight(const LinearGradWeightArgs& args);

}  // namespace ddsm
