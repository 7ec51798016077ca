// Contract of sliced_conv2d between bindings and kernels. No torch.
//
//   y[n, o, i, j] = bias[o] + sum over c, r, s of up(x)[n, c, i * stride - padding + r,
//                                                  j * stride - padding + s] * weight[o, c, r, s]
// up: nearest-neighbour enlargement by `scale`, 1 or 2, with zeros around. Strides count elements.
#pragma once

#include <cstdint>

#include "ddsm/activation.h"
#include "ddsm/types.h"

namespace ddsm {

// A batch of images with channel stride 1: of y's type, but float32 for kDirect and a bfloat16 y.
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
  int64_t block_stride = 0;  // from a value's weights to its gate half's, in GEGLU's panels alone
};

struct Conv2dShape {
  int64_t images, height, width;  // of x
  int64_t out_height, out_width;  // of y
  int64_t stride, padding, scale;
  int64_t padding_end;  // zeros behind the last row and column; `padding` before the first
};

// How a convolution is computed. kWinograd4 and kWinograd2 are F(4x4, 3x3) and F(2x2, 3x3).
// kDirectBf16 multiplies bfloat16 (x, weight and y) without widening, where conv2d_has says so.
enum class Conv2dAlgo : int32_t { kDirect, kWinograd4, kWinograd2, kDirectBf16 };

// True if the instruction set in use computes with the algorithm.
DDSM_EXPORT bool conv2d_has(Conv2dAlgo algo);

// A weight rearranged for one algorithm, whole supernet at once; any width reads a prefix. Made by
// conv2d_make_panels, laid out for the instruction set that was active then.
struct Conv2dPanels {
  const void* data;  // null: none; kDirect then packs what it needs
  int64_t c_out_max, c_in_max;
};

struct Conv2dForwardArgs {
  // inputs
  Conv2dShape shape;
  Conv2dImage x, x2;
  Conv2dWeight weight;  // data is not read where panels are given
  Conv2dAlgo algo;
  Conv2dPanels panels;
  const void* bias;  // [c_out] of weight.dtype; null: zero
  // fused, float32 and bfloat16 only; null: none
  const float* norm;  // [images][3][c_in]: x becomes act((x - norm[0]) * norm[1] + norm[2])
  bool norm_silu;     // act is SiLU; needs a Winograd algorithm
  const float* shift;    // [images][c_out], added like a bias; kGeglu has none
  // Of the sum so far, with bias and shift; needs a direct algorithm, kGeglu two parts.
  Activation activation = Activation::kNone;
  const float* gate = nullptr;  // [images][channels of y], times the activation; as that
  const void* residual;  // like y, added to it
  int64_t residual_scale;  // 1, or 2: its height and width are half of y's, and it is enlarged
                           // (nearest neighbour); needs a Winograd algorithm
  double gain = 1;         // y is this times the sum of all
  // outputs
  void* y;  // [images, out_height, out_width, parts * c_out (kGeglu: c_out)] contiguous
  DType y_dtype;
  int64_t c_out;
  int64_t parts;    // weights side by side in panels and bias [parts][c_out_max]; > 1 needs panels
  // GroupNormMomentsArgs::moments of y in blocks of conv2d_moment_pixels; null: not wanted
  double* moments;
};

struct Conv2dGradXArgs {
  // inputs
  Conv2dShape shape;
  Conv2dImage grad_y;  // channels: c_out; weight_offset: 0
  Conv2dWeight weight;  // data is not read where panels are given
  Conv2dAlgo algo;
  Conv2dPanels panels;  // of the gradient
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
  Conv2dAlgo algo;
  // outputs, added to
  Conv2dWeight grad_weight;
  void* grad_bias;  // [c_out] of grad_weight.dtype; null: not wanted
};

// The pixels (in row-major order, all but an image's last block) whose mean and sum of squared
// deviations make one block of Conv2dForwardArgs::moments.
DDSM_EXPORT int64_t conv2d_moment_pixels(const Conv2dShape& shape, Conv2dAlgo algo);

// Panels of a float32 or bfloat16 weight: of the forward, or (transposed) of the gradient of x.
// Kernels to kLargestPanelKernel; Winograd panels serve any scale, transposed ones are Winograd's,
// kDirectBf16 takes no enlargement (its weights would be sums, rounded once more). glu: of two
// weights, as kGeglu reads them; of direct algorithms.
constexpr int32_t kLargestPanelKernel = 5;
// conv2d_panel_floats is -1 where there are none, or for more weights than kMostElements.
DDSM_EXPORT int64_t conv2d_panel_floats(int64_t kernel, int64_t c_out_max, int64_t c_in_max,
                                        Conv2dAlgo algo, int64_t scale, bool transposed, bool glu);
void conv2d_make_panels(const Conv2dWeight& weight, int64_t c_out_max, int64_t c_in_max,
                        Conv2dAlgo algo, int64_t scale, bool transposed, bool glu, void* panels);

// False: out of memory, nothing usable was written.
bool conv2d_forward(const Conv2dForwardArgs& args);
bool conv2d_grad_x(const Conv2dGradXArgs& args);
bool conv2d_grad_weight(const Conv2dGradWeightArgs& args);

}  // namespace ddsm
