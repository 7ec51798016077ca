// Contract of sliced_layer_norm between bindings and kernels.
//
//   affine = (x - mean) * rstd * gamma + beta,  y = affine * (1 + scale) + shift
//
// with mean and rstd of a row's channels, and scale and shift of an image.
#pragma once

#include <cstdint>

#include "ddsm/types.h"

namespace ddsm {

struct LayerNormArgs {
  DType dtype;             // of x, y and their gradients; on the CPU float32, bfloat16, float64
  DType param_dtype;       // of weight, bias and their gradients: dtype or float32
  DType modulation_dtype;  // of scale, shift and their gradients: dtype; on the CPU or float32
  int64_t images, rows, channels;  // rows: of an image; without scale and shift all are of one
  // inputs; channels are adjacent, row r of all images lies at r / run * run stride + r % run * row
  // stride
  int64_t run;
  const void* x;  // [images, rows, channels]
  int64_t x_run_stride, x_row_stride;
  const void* grad_y;  // as x; backward only
  int64_t grad_y_run_stride, grad_y_row_stride;
  const void* weight;  // gamma, of which only `channels` are read; null: 1
  const void* bias;    // beta; null where weight is
  double eps;          // forward only
  const void* scale;   // [images][channels]; null: none
  const void* shift;   // null where scale is
  int64_t modulation_stride;  // elements between images, of both
  // outputs, dense
  void* y;       // [images, rows, channels]; forward only
  void* grad_x;  // [images, rows, channels]; backward only
  // statistics, float64 for float64 x, else float32; outputs of forward (null: not wanted), inputs
  // of backward
  void* mean;  // [images, rows]
  void* rstd;  // [images, rows]
  // added to by backward, of param_dtype; null: not wanted
  void* grad_weight;
  void* grad_bias;
  void* grad_scale;  // [images][channels] dense, written; backward only, null: not wanted
  void* grad_shift;
  void* scratch;  // layer_norm_scratch_bytes(args), 64-byte aligned

  // Whether a backward sums over rows.
  bool wants_sums() const { return grad_weight || grad_bias || grad_scale || grad_shift; }
};

DDSM_EXPORT int64_t layer_norm_scratch_bytes(const LayerNormArgs& args);

// Fills y, mean and rstd.
void layer_norm_forward(const LayerNormArgs& args);

// Fills grad_x, grad_scale and grad_shift; adds dL/dgamma and dL/dbeta to the channels of
// grad_weight and grad_bias.
void layer_norm_backward(const LayerNormArgs& args);

}  // namespace ddsm
