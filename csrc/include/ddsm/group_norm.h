// Contract between the bindings and the kernels of sliced_group_norm.
#pragma once

#include <cstdint>

#include "ddsm/types.h"

namespace ddsm {

// One of the one or two tensors whose channels together are normalised. All NHWC: channels
// adjacent, element (n, p, c) of x at (n * pixels + p) * pixel stride + c.
struct GroupNormSource {
  int64_t c;             // active channels
  int64_t param_offset;  // its first channel's index in weight and bias
  // inputs
  const void* x;  // [n, pixels, c]
  int64_t x_pixel_stride;
  const void* grad_y;  // [n, pixels, c]; backward only
  int64_t grad_y_pixel_stride;
  // outputs, dense
  void* y;       // [n, pixels, c]; forward only
  void* grad_x;  // [n, pixels, c]; backward only
};

struct GroupNormArgs {
  DType dtype;        // of the sources: float32, bfloat16, float64
  DType param_dtype;  // of weight, bias and their gradients: dtype or float32
  int64_t n, pixels;
  int64_t groups;  // divides the sources' channels together; groups may straddle the sources
  int64_t source_count;
  GroupNormSource sources[2];
  const void* weight;  // gamma, only the sources' channels are read
  const void* bias;    // beta
  double eps;          // forward only
  bool silu;
  // statistics, float64 for float64 sources, else float32; outputs of forward, inputs of backward
  void* mean;  // [n, groups]
  void* rstd;  // [n, groups]
  // added to by backward, of param_dtype; null: not wanted
  void* grad_weight;
  void* grad_bias;
  void* scratch;  // group_norm_scratch_bytes(args), 64-byte aligned
};

int64_t group_norm_scratch_bytes(const GroupNormArgs& args);

// y = act((x - mean) * rstd * gamma + beta); fills y, mean, rstd.
void group_norm_forward(const GroupNormArgs& args);

// Fills grad_x; adds dL/dgamma and dL/dbeta to the sources' channels of grad_weight and grad_bias.
void group_norm_backward(const GroupNormArgs& args);

}  // namespace ddsm
