// The geometry of a convolution and of its gradients as phases and taps of the GEMM core.
#pragma once

#include <vector>

#include "ddsm/conv2d.h"
#include "gemm.h"

namespace ddsm {

// Phases whose taps pointers lie in `taps`. Row counts and y offsets are in output pixels of the
// walked image (y of the forward, x of the gradient of x); y strides are not filled in.
struct Conv2dPhase {
  int64_t first_row, first_col, pixel_step;  // output pixel = grid position * step + first
  int64_t rows, cols;
  int64_t input_step;
  std::vector<GemmTap> taps;
};

// y from x; also used for the gradient of the weights, which walks the same pixels.
std::vector<Conv2dPhase> plan_forward(const Conv2dShape& shape, int32_t kernel);

// The phases of plan_forward at stride 1 with "same" padding: the taps that cached panels hold. A
// strided convolution has the one phase of scale 1.
std::vector<Conv2dPhase> plan_panels(int32_t kernel, int64_t scale);

// x's gradient from y's.
std::vector<Conv2dPhase> plan_grad_x(const Conv2dShape& shape, int32_t kernel);

}  // namespace ddsm
