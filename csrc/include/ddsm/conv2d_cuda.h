// Contract of sliced_conv2d on CUDA between bindings and kernels; sliced_linear is its 1x1 case
// (images 1, height = rows, width 1). conv2d.h says what is computed.
//
// Everything runs on the current device; `stream` is a cudaStream_t. Functions return null, or why
// they refused or what a launch reported. Nothing allocates: the caller brings the workspace.
#pragma once

#include <cstdint>

#include "ddsm/activation.h"
#include "ddsm/conv2d.h"

namespace ddsm {

struct Conv2dCudaOptions {
  DType dtype;  // of every image: float32, bfloat16, float16. Weights: the same or float32
  bool ieee;    // float32 products in full precision; false: tf32
  // 0: chosen by tile_choice.h; else that many K splits, and 1 + the index of a tile, which also
  // says whether the sm_80 or the sm_90a path is taken
  int32_t splits, tile;
  // The launch may begin while the kernel before it in the stream ends; that one and any other that
  // may still run then write neither weights nor biases.
  bool overlaps;
  // conv2d_forward_cuda: kConvTickets zeros, and zeros again afterwards, that no other launch uses
  // at the same time. Null: some of the workspace, cleared before by a command of its own.
  unsigned* tickets;
  void* workspace;  // conv2d_*_cuda_workspace_bytes, 16-byte aligned
};

// The most tiles of an output whose sums over K are split.
constexpr int64_t kConvTickets = 4096;

// The most weights side by side.
constexpr int64_t kConvParts = 3;

// A part after the first: a weight of Conv2dCudaForwardArgs::weight's dtype, sizes and strides, and
// its bias.
struct Conv2dCudaPart {
  const void* weight;
  const void* bias;  // as Conv2dCudaForwardArgs::bias
};

// A 1x1 convolution of other images of y's size (height and width), at stride 1, with a bias.
struct Conv2dCudaShortcut {
  Conv2dImage x, x2;  // x.data null: there is none; x2.data null: one source
  Conv2dWeight weight;
  const void* bias;  // as Conv2dCudaForwardArgs::bias
};

// y = gain (residual + gate act(conv + bias + shortcut + shift)), rounded once. Parts (q, k and v
// of an attention are three) read the same images; their outputs lie side by side. By kGeglu two
// parts, value and gate half, give the columns of one.
struct Conv2dCudaForwardArgs {
  Conv2dCudaOptions options;
  // inputs
  Conv2dShape shape;
  Conv2dImage x, x2;
  Conv2dWeight weight;
  const void* bias;      // [c_out] of weight.dtype; null: zero
  int64_t parts;         // weights side by side; kGeglu: 2
  Conv2dCudaPart further[kConvParts - 1];  // the parts after the first
  Conv2dCudaShortcut shortcut;  // none beside several parts
  Activation activation;
  const void* gate;      // [images, channels of y]; null: one
  const void* shift;     // [images, channels of y], a time embedding; null: zero. kGeglu: null
  const void* residual;  // [images, out_height, out_width, channels of y]; null: zero
  int64_t gate_stride, shift_stride;  // between images
  int64_t residual_stride;  // between pixels
  float gain = 1;
  // outputs
  void* y;  // [images, out_height, out_width, channels: parts * c_out, or by kGeglu c_out]
  int64_t y_stride;  // between pixels
  // group_norm_cuda_moments_bytes of conv2d_forward_cuda_moment_classes classes, 16-byte aligned;
  // null: not wanted
  void* moments;
  int64_t c_out;  // of each part
};

struct Conv2dCudaGradXArgs {
  Conv2dCudaOptions options;
  // inputs
  Conv2dShape shape;
  Conv2dImage grad_y;  // channels: c_out
  Conv2dWeight weight;
  // Several of a 1x1 convolution at stride 1 of images of one pixel a row: grad_y's pixels have the
  // channels of each side by side, grad_x is the sum.
  int64_t parts = 1;
  int64_t part_stride;  // between their weights
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

// The classes of pixels whose moments lie apart: 1, or 4 where rows and columns of y are computed
// alternately.
int64_t conv2d_forward_cuda_moment_classes(const Conv2dCudaForwardArgs& args);

int64_t conv2d_forward_cuda_workspace_bytes(const Conv2dCudaForwardArgs& args);
int64_t conv2d_grad_x_cuda_workspace_bytes(const Conv2dCudaGradXArgs& args);
int64_t conv2d_grad_weight_cuda_workspace_bytes(const Conv2dCudaGradWeightArgs& args);

const char* conv2d_forward_cuda(const Conv2dCudaForwardArgs& args, void* stream);
const char* conv2d_grad_x_cuda(const Conv2dCudaGradXArgs& args, void* stream);
const char* conv2d_grad_weight_cuda(const Conv2dCudaGradWeightArgs& args, void* stream);

}  // namespace ddsm
