// Contract of sliced_linear between bindings and kernels. No torch.
//
//   z[m, b, o] = bias[b, o] + sum over c of x[m, c] * weight[b, o, c]
//   y[m, ..] = residual[m, ..] + gate[image of m, ..] * act(z[m, .., ..])
// with blocks b of outputs side by side. Strides count elements; x and the gradients of z have
// column stride 1.
#pragma once

#include <cstdint>

#include "ddsm/activation.h"
#include "ddsm/types.h"

namespace ddsm {

struct LinearWeight {
  void* data;  // [blocks, c_out_max, c_in_max]; only gradients are written
  DType dtype;
  int64_t out_stride, in_stride;
  int64_t blocks = 1, block_stride = 0;
  int64_t c_out_max = 0;  // elements between the blocks of a bias
};

struct LinearForwardArgs {
  // inputs
  const void* x;  // [rows, c_in], float32 (float64 when y is float64)
  int64_t rows, c_in, x_row_stride;
  LinearWeight weight;
  const void* bias;  // [blocks][c_out_max] of weight.dtype; null: zero
  Activation activation = Activation::kNone;
  const void* gate = nullptr;      // [images][columns of y], float64 for such a y, else float32
  int64_t images = 1;              // of rows / images rows each
  const void* residual = nullptr;  // like y; null: zero
  // output
  void* y;  // [rows, columns: blocks * c_out, but c_out for kGeglu, which takes 2 blocks]
  DType y_dtype;
  int64_t y_row_stride;  // of the residual, too; with an activation or a gate, the columns
  int64_t c_out;  // of a block
};

struct LinearGradXArgs {
  // inputs
  const void* grad_z;  // [rows, blocks * c_out], float32 (float64 when grad_x is float64)
  int64_t rows, c_out, grad_z_row_stride;
  LinearWeight weight;
  // output
  void* grad_x;  // [rows, c_in] contiguous
  DType grad_x_dtype;
  int64_t c_in;
};

struct LinearGradWeightArgs {
  // inputs
  const void* grad_z;  // [rows, blocks * c_out]
  const void* x;       // [rows, c_in]
  DType compute;       // kFloat32 or kFloat64, of both
  int64_t rows, c_out, c_in, grad_z_row_stride, x_row_stride;
  // outputs, added to
  LinearWeight grad_weight;
  void* grad_bias;  // [blocks][c_out_max] of grad_weight.dtype; null: not wanted
};

// False: out of memory, nothing usable was written.
bool linear_forward(const LinearForwardArgs& args);
// Layers of which none reads another's y; few rows are computed in parallel over all outputs.
bool linears_forward(const LinearForwardArgs* layers, int64_t count);
bool linear_grad_x(const LinearGradXArgs& args);
bool linear_grad_weight(const LinearGradWeightArgs& args);

}  // namespace ddsm
