// What the group norm kernels get. No CUDA header.
#pragma once

#include <cstdint>

#include "index_maps.h"
#include "moments.h"

namespace ddsm {

// Adjacent channels of one source that a block covers at most: a line of 128 bytes of a pixel's
// 16-bit channels, and few enough that the blocks of a batch of 128 images fill a GPU.
constexpr int kNormChannels = 64;
constexpr int kApplyThreads = 256, kSumThreads = 128;

// Two sums of a channel.
struct alignas(8) Pair {
  float first, second;
};

// One that is not there has c = chunks = 0.
template <class T>
struct NormSource {
  const T* x;
  const T* grad_y;
  T* out;  // y or grad_x
  int64_t x_stride, grad_stride;
  int32_t c, first_channel, param_offset;  // first_channel: of both sources' as one
  int32_t chunks, chunk_channels;          // of its channels, one a block
};

// Moments of a source's channels or sums over them, [n, count, c], of blocks of its pixels: the
// r-th of block r % blocks of the pixels of class r / blocks.
template <class V>
struct NormParts {
  V* data;
  int64_t pixels;  // of a class
  int32_t count;
  Divider blocks;
};

// V: Moments forward, Pair backward.
template <class T, class V>
struct NormParams {
  NormSource<T> sources[2];
  NormParts<V> parts[2];
  const void *weight, *bias;  // of float if wide_params, else of T
  float *mean, *rstd;         // [n, groups]; null: not wanted
  void *grad_weight, *grad_bias;  // as weight and bias; null: not wanted
  // u = (xhat * gamma + beta) * (1 + scale) + shift; null: u = xhat * gamma + beta. An image's row
  // has the channels of both sources.
  const T *scale, *shift;
  int64_t modulation_stride;   // between images
  T *grad_scale, *grad_shift;  // dense; null: not wanted
  double eps;
  double inverse_count;  // 1 / the numbers in a group
  int32_t n, pixels, groups, group_size;
  int32_t rows, row_blocks;  // pixels that a block covers, and blocks that an image has
  // A block's threads that sum parts of one group, and how many sums they leave: a power of 2.
  int32_t columns, lanes;
  Divider half_width;  // of the sources, where y holds means of 2x2 pixels
  bool silu, wide_params;
};

}  // namespace ddsm
