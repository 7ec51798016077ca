// Contract of sliced_conv2d on CUDA between bindings and kernels; sliced_linear is its 1x1 case
// (images 1, height = rows, width 1). conv2d.h says what is computed.
//
// Everything runs on the current device; `stream` is a cudaStream_t. Functions return null, or why
// they refused or what a launch reported. Nothing allocates: the caller brings the workspace.
#pragma once

#include <cstdint>

#include "ddsm/conv2d.h"

namespace ddsm {

struct Conv2dCudaOptions {
  DType dtype;  // of every image: float32, bfloat16, float16. Weights: the same or float32
  bool ieee;    // float32 products in full precision; false: tf32
  // 0: chosen by tile_choice.h; else that many K splits, and 1 + the index of a tile, which also
  // says whether the sm_80 or the sm_90a path is taken
  int32_t splits, tile;
  void* workspace;  // conv2d_*_cuda_workspace_bytes, 16-byte aligned
};

// A weight beside Conv2dCudaForwardArgs::weight, of its dtype, sizes and strides, and its bias.
struct Conv2dCudaPart {
  const void* weight;
  const void* bias;  // as Conv2dCudaForwardArgs::bias
};

// y = conv + bias + shift + residual, rounded once. Further weights (q, k and v of an attention are
// three) read the same images; their outputs lie beside each other.
struct Conv2dCudaForwardArgs {
  Conv2dCudaOptions options;
  // inputs
  Conv2dShape shape;
  Conv2dImage x, x2;
  Conv2dWeight weight;
  const void* bias;      // [c_out] of weight.dtype; null: zero
  Conv2dCudaPart further[2];
  int64_t further_count;
  const void* shift;     // [images, channels of y], a time embedding; null: zero
  const void* residual;  // [images, out_height, out_width, channels of y]; null: zero
  int64_t shift_stride;  // between images
  int64_t residual_stride;  // between pixels
  // outputs
  void* y;  // [images, out_height, out_width, (1 + further_count) * c_out] contiguous
  void* moments;  // group_norm_cuda_moments_bytes, 16-byte aligned; null: not wanted
  int64_t c_out;  // of each weight
};

struct Conv2dCudaGradXArgs {
  Conv2dCudaOptions options;
  // inputs
  Conv2dShape shape;
  Conv2dImage grad_y;  // channels: c_out
  Conv2dWeight weight;
  // output
  void* grad_x;  // [images, height, width, c_in] contiguous
  int64_t c_in, c_in_offset;
};

struct Conv2dCudaGradWeightArgs {
  Conv2dCudaOptions options;
  // inputs
  Conv2dShape shape;
  Conv2dImage grad_y;  // channels: c_out
  Conv2dImage x, x2;
  // outputs, added to in a fixed order
  Conv2dWeight grad_weight;
  void* grad_bias;  // [c_out] of grad_weight.dtype; null: not wanted
};

int64_t conv2d_forward_cuda_workspace_bytes(const Conv2dCudaForwardArgs& args);
int64_t conv2d_grad_x_cuda_workspace_bytes(const Conv2dCudaGradXArgs& args);
int64_t conv2d_grad_weight_cuda_workspace_bytes(const Conv2dCudaGradWeightArgs& args);

const char* conv2d_forward_cuda(const Conv2dCudaForwardArgs& args, void* stream);
const char* conv2d_grad_x_cuda(const Conv2dCudaGradXArgs& args, void* stream);
const char* conv2d_grad_weight_cuda(const Conv2dCudaGradWeightArgs& args, void* stream);

}  // namespace ddsm
