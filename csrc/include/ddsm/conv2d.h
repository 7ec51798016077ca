// Contract of sliced_conv2d between bindings and kernels. No torch.
//
//   y[n, o, i, j] = bias[o] + sum over c, r, s of up(x)[n, c, i * stride - padding + r,
//                                                  j * stride - padding + s] * weight[o, c, r, s]
// up: nearest-neighbour enlargement by `scale`, 1 or 2. Strides count elements.
#pragma once

#include <cstdint>

#include "ddsm/types.h"

namespace ddsm {

// A batch of images with channel stride 1, float32 (float64 when y is float64).
struct Conv2dImage {
  const void* data;  // null: no such source
  int64_t n_stride, h_stride, w_stride;
  int64_t channels;
  int64_t weight_offset;  // the weight input channel that its first channel meets
};

struct Conv2dWeight {
  void* data;  // [c_out_max, c_in_max, k, k]; only gradients are written
  DType dtype;
  int64_t out_stride, in_stride, r_stride, s_stride;
  int32_t kernel;
};

struct Conv2dShape {
  int64_t images, height, width;  // of x
  int64_t out_height, out_width;  // of y
  int64_t stride, padding, scale;
};

struct Conv2dForwardArgs {
  // inputs
  Conv2dShape shape;
  Conv2dImage x, x2;
  Conv2dWeight weight;
  const void* bias;  // [c_out] of weight.dtype; null: zero
  // output
  void* y;  // [images, out_height, out_width, c_out] contiguous
  DType y_dtype;
  int64_t c_out;
};

struct Conv2dGradXArgs {
  // inputs
  Conv2dShape shape;
  Conv2dImage grad_y;  // channels: c_out; weight_offset: 0
  Conv2dWeight weight;
  // output
  void* grad_x;  // [images, height, width, c_in] contiguous
  DType grad_x_dtype;
  int64_t c_in, c_in_offset;
};

struct Conv2dGradWeightArgs {
  // inputs
  Conv2dShape shape;
  Conv2dImage grad_y;  // channels: c_out
  Conv2dImage x, x2;
  DType compute;  // kFloat32 or kFloat64, of grad_y, x and x2
  // outputs, added to
  Conv2dWeight grad_weight;
  void* grad_bias;  // [c_out] of grad_weight.dtype; null: not wanted
};

// False: out of memory, nothing usable was written.
bool conv2d_forward(const Conv2dForwardArgs& args);
bool conv2d_grad_x(const Conv2dGradXArgs& args);
bool conv2d_grad_weight(const Conv2dGradWeightArgs& args);

}  // namespace ddsm
