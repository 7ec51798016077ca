// Group norm in three parts, for networks whose convolutions take two of them over: the moments of
// a tensor come from the pass that writes it, the normalisation goes into the pass that reads it.
#pragma once

#include <cstdint>

#include "ddsm/types.h"

namespace ddsm {

// Blocks of `pixels` pixels (an image's last one may be shorter) with moments
// [images][blocks][2][channels]: mean, then sum of squared deviations.
struct NormMoments {
  double* data;
  int64_t block_pixels;
};

struct NormMomentsArgs {
  // inputs
  const void* x;  // [images, pixels, channels] contiguous, float32 or bfloat16
  DType dtype;
  int64_t images, pixels, channels;
  // output
  NormMoments moments;
};

struct NormSource {
  int64_t channels, param_offset;
  NormMoments moments;
};

struct NormMergeArgs {
  // inputs
  int64_t images, pixels;
  int64_t source_count;
  NormSource sources[2];
  int64_t groups;  // divides the sources' channels together; may straddle the sources
  double eps;
  const void* weight;  // gamma and beta: [c_max]
  const void* bias;
  DType param_dtype;  // float32 or bfloat16
  // output: y = (x - norm[0]) * norm[1] + norm[2]
  float* norm;  // [images][3][channels of all sources]
};

struct NormApplyArgs {
  // inputs
  const void* x[2];  // [images, pixels, channels[i]] contiguous; x[1] null: one source
  DType dtype;       // float32 or bfloat16
  int64_t images, pixels, channels[2];
  const float* norm;  // as NormMergeArgs::norm, null: no normalisation
  bool silu;          // y = silu(normalised x)
  // output
  void* y;  // [images, pixels, channels of all sources]
  DType y_dtype;  // float32, or bfloat16 where dtype is
};

void norm_moments(const NormMomentsArgs& args);
void norm_merge(const NormMergeArgs& args);
void norm_apply(const NormApplyArgs& args);

}  // namespace ddsm
