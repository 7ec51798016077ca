// Contract between the bindings and the kernels of sliced_group_norm: the op as a whole, and on the
// CPU its three stages for plans of a network, in which convolutions take two of them over.
//
//   affine = (x - mean) * rstd * gamma + beta,  y = act(affine * (1 + scale) + shift)
//
// with mean and rstd of an image's group of channels, and scale and shift (FiLM) of an image.
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
  // FiLM, of dtype: y = act(affine * (1 + scale) + shift); null: none
  const void* scale;  // [n][channels of all sources], adjacent channels
  const void* shift;
  int64_t modulation_stride;  // elements between images, of both
  void* grad_scale;  // [n][channels of all sources] dense, written; backward only, null: not wanted
  void* grad_shift;
  void* scratch;  // group_norm_scratch_bytes(args), 64-byte aligned
};

int64_t group_norm_scratch_bytes(const GroupNormArgs& args);

// Fills y, mean, rstd.
void group_norm_forward(const GroupNormArgs& args);

// Fills grad_x, grad_scale and grad_shift; adds dL/dgamma and dL/dbeta to the sources' channels of
// grad_weight and grad_bias.
void group_norm_backward(const GroupNormArgs& args);

// ---- The stages on the CPU ----------------------------------------------------------------------
// Moments are not opaque here, as they are on CUDA: whoever writes a tensor may leave them, in
// blocks of pixels that suit it, and the merge takes blocks of any size.

// Mean and sum of squared deviations of blocks of pixels.
struct GroupNormMomentsArgs {
  // inputs
  const void* x;  // [images, pixels, channels], adjacent channels
  DType dtype;    // float32, bfloat16, float64
  int64_t images, pixels, channels, x_pixel_stride;
  int64_t block_pixels;  // of a block, in row-major order; an image's last one may be shorter
  // output: mean, then sum of squared deviations
  double* moments;  // [images][blocks][2][channels]
};

struct GroupNormMergeSource {
  int64_t channels, param_offset;
  const double* moments;  // as GroupNormMomentsArgs::moments, with blocks of
  int64_t block_pixels;
};

// Moments become what the apply reads.
struct GroupNormMergeArgs {
  // inputs
  int64_t images, pixels;
  int64_t source_count;
  GroupNormMergeSource sources[2];
  int64_t groups;  // divides the sources' channels together; may straddle the sources
  double eps;
  const void* weight;  // gamma and beta: [c_max]
  const void* bias;
  DType param_dtype;  // float32, bfloat16, float64
  const void* scale;  // FiLM [images][channels of all sources]; null: none
  const void* shift;
  DType modulation_dtype;     // of both
  int64_t modulation_stride;  // elements between images, of both
  DType compute;              // of the outputs: float32, or float64 for float64 sources
  // outputs
  void* norm;  // [images][3][channels of all sources]: y = (x - norm[0]) * norm[1] + norm[2]
  void* mean;  // [images, groups]; null: not wanted
  void* rstd;
};

// What happens to the pixels between the normalisation and the memory of y.
enum class Resample : int32_t { kNone, kUp, kDown };

struct GroupNormApplySource {
  const void* x;  // [images, height, width, channels], adjacent channels
  int64_t channels, x_pixel_stride;
  void* y;  // [images, height, width (as resampled), channels], adjacent channels
  int64_t y_pixel_stride;
};

// y = act(normalised x), then enlarged (nearest neighbour) or averaged by 2x2.
struct GroupNormApplyArgs {
  int64_t images, height, width;  // of x; even for kDown
  int64_t source_count;
  GroupNormApplySource sources[2];
  DType dtype;    // of x: float32, bfloat16, float64
  DType y_dtype;  // dtype, or float32 for bfloat16
  const void* norm;  // as GroupNormMergeArgs::norm; null: y = act(x)
  bool silu;         // act is SiLU
  Resample resample;
};

void group_norm_moments(const GroupNormMomentsArgs& args);
void group_norm_merge(const GroupNormMergeArgs& args);
void group_norm_apply(const GroupNormApplyArgs& args);

}  // namespace ddsm
