// Contract of resample between bindings and kernels: nearest-neighbour enlargement by 2, or the
// means of 2x2 pixels. dtype on the CPU: float32, bfloat16, float64.
#pragma once

#include <cstdint>

#include "ddsm/types.h"

namespace ddsm {

struct ResampleArgs {
  // input; strides count elements, channels are adjacent
  const void* x;
  DType dtype;
  int64_t images, height, width, channels;  // of x; height and width are even for means
  int64_t n_stride, h_stride, w_stride;
  bool up;      // enlarge; false: take means
  double gain;  // y is this times the pixel or mean
  // output
  void* y;  // [images, height * 2 or / 2, width * 2 or / 2, channels] contiguous
};

void resample(const ResampleArgs& args);

}  // namespace ddsm
