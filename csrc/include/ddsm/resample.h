// Contract of resample between bindings and kernels: by 2, up or down, with a filter of 2 or 4 taps
// in each direction. dtype on the CPU: float32, bfloat16, float64.
//
// Down, y[i] = sum_k f[k] x[2 i + k - p]; up, the transpose of that times 4 (2 in each direction);
// x is 0 beyond its pixels. 2 taps: f = [1, 1] / 2, p = 0: means of 2x2 pixels, nearest neighbours.
// 4 taps: f = [1, 3, 3, 1] / 8, p = 1; with a ring p = 0: one pixel on each side of the larger
// image lies around it.
#pragma once

#include <cstdint>

#include "ddsm/types.h"

namespace ddsm {

struct ResampleArgs {
  // inputs; strides count elements, channels are adjacent
  const void* x;
  DType dtype;
  int64_t images, height, width, channels;  // of x; height and width are even to go down
  int64_t n_stride, h_stride, w_stride;
  bool up;               // enlarge; false: halve
  double gain;           // y is this times the sum of the filter's result and the residual
  int32_t taps;          // 2 or 4
  bool ring;             // only of 4 taps
  const void* residual;  // as y; null: none
  int64_t residual_n_stride, residual_h_stride, residual_w_stride;
  // output
  void* y;  // [images, out_side(height), out_side(width), channels] contiguous

  int64_t out_side(int64_t side) const {
    return up ? 2 * side + (ring ? 2 : 0) : side / 2 - (ring ? 1 : 0);
  }
  // True where 2x2 pixels of the larger image go with one of the smaller, and nothing is added: the
  // kernels go by pixels of the smaller, else by those of y.
  bool is_blockwise() const { return taps == 2 && !residual; }
};

void resample(const ResampleArgs& args);

}  // namespace ddsm
