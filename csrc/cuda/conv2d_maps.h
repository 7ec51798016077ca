// The tensor maps of a convolution, or of its gradient of x, on the sm_90a path, and whether it can
// take that path. Pure; no CUDA header.
#pragma once

#include "conv2d_params.h"
#include "tensor_map.h"

namespace ddsm {

// Sizes of the images that are read: x, or grad_y in the gradient.
struct ConvGeometry {
  Math math;
  bool gradient;
  int64_t images, height, width;
  int64_t kernel, stride, padding, scale;
  int64_t weights;  // side by side

  // The box that a filter's first tap walks through, as tensor maps have it. Forward: from
  // -padding on, and its last tap ends at padding past the image. Gradient: grad_x[i] gathers from
  // grad_y[i + padding - r], so the lowest tap is r = kernel - 1, and there are as many positions
  // as x has pixels.
  int64_t lower() const { return gradient ? padding - (kernel - 1) : -padding; }
  int64_t upper() const { return gradient ? -padding : padding - (kernel - 1); }
};

// Rows and columns of a tile's operands as boxes of 128 bytes: M pixels, and N rows of K forward or
// K rows of 64 columns in the gradient.
constexpr int64_t kBoxElements = kHopperStepBytes / 2;

inline TensorMapSpec image_map(const ImageView& image, const ConvGeometry& g, int32_t tile_m) {
  TensorMapSpec map{};
  map.data = image.data;
  map.half_floats = g.math == Math::kFloat16;
  map.im2col = true;
  // A dimension of one element has no meaningful stride; it gets one that fits the others.
  const int64_t row = (image.channels + 7) / 8 * 8;
  const int64_t w = g.width > 1    ? image.w_stride
                    : g.height > 1 ? image.h_stride
                    : g.images > 1 ? image.n_stride
                                   : row;
  const int64_t h = g.height > 1 ? image.h_stride : w * g.width;
  const int64_t n = g.images > 1 ? image.n_stride : h * g.height;
  const int64_t size[4] = {image.channels, g.width, g.height, g.images}, strides[3] = {w, h, n};
  for (int d = 0; d < 4; ++d) map.size[d] = size[d];
  for (int d = 0; d < 3; ++d) map.stride_bytes[d] = strides[d] * 2;
  map.row = kBoxElements;
  map.pixels = tile_m;
  map.lower = g.lower();
  map.upper = g.upper();
  map.step = g.gradient ? 1 : g.stride;
  return map;
}

// The slice of the weight that meets one source: `c_in` and `c_out` active channels, what lies
// beyond is zero. Dimensions: input channel, s, r, output channel.
inline TensorMapSpec weight_map(const WeightView& weight, int64_t first_channel, int64_t c_in,
                                int64_t c_out, const ConvGeometry& g, int32_t tile_n) {
  TensorMapSpec map{};
  map.data = static_cast<const char*>(weight.data) + first_channel * 2;
  map.half_floats = g.math == Math::kFloat16;
  const bool window = g.kernel > 1;
  const int64_t size[4] = {c_in, g.kernel, g.kernel, c_out};
  const int64_t strides[3] = {window ? weight.s_stride : weight.out_stride,
                              window ? weight.r_stride : weight.out_stride, weight.out_stride};
  for (int d = 0; d < 4; ++d) map.size[d] = size[d];
  for (int d = 0; d < 3; ++d) map.stride_bytes[d] = strides[d] * 2;
  map.row = kBoxElements;
  map.box[0] = map.box[1] = 1;
  map.box[2] = g.gradient ? kBoxElements : tile_n;
  return map;
}

struct ConvMaps {
  TensorMapSpec image[2], weight[2];  // of each source
};

// n: columns of the product. Sources: as ConvParams has them.
inline ConvMaps conv_maps(const ImageView (&source)[2], int32_t sources, const WeightView& weight,
                          int64_t n, const ConvGeometry& g, int32_t tile) {
  ConvMaps maps{};
  for (int32_t i = 0; i < sources; ++i) {
    const int64_t channels = source[i].channels;
    maps.image[i] = image_map(source[i], g, kTiles[tile].m);
    maps.weight[i] = weight_map(weight, source[i].weight_channel, g.gradient ? n : channels,
                                g.gradient ? channels : n, g, kTiles[tile].n);
  }
  return maps;
}

// Null, or why the sm_90a path cannot serve; `device`: whether device and build have sm_90a.
inline const char* hopper_refusal(const ImageView (&source)[2], int32_t sources,
                                  const WeightView& weight, int64_t n, bool aligned,
                                  const ConvGeometry& g, bool device) {
  if (!device) {
    return "the sm_90a path needs a GPU of compute capability 9.0 and a build for sm_90a";
  }
  if (g.math != Math::kBFloat16 && g.math != Math::kFloat16) {
    return "the sm_90a path needs bfloat16 or float16 images";
  }
  if (!aligned) {
    return "the sm_90a path needs pixels and filters of one type, at multiples of 16 bytes";
  }
  if (g.weights != 1) return "the sm_90a path needs one weight, not several side by side";
  if (g.scale != 1) return "the sm_90a path needs x as it is, not enlarged";
  if (g.gradient && g.stride != 1) return "the sm_90a path needs stride 1 for the gradient of x";
  if (g.kernel > 128) return "the sm_90a path needs a kernel of at most 128 taps a side";
  const ConvMaps maps = conv_maps(source, sources, weight, n, g, kPortableTiles);
  for (int32_t i = 0; i < sources; ++i) {
    if (const char* reason = refusal(maps.image[i])) return reason;
    if (const char* reason = refusal(maps.weight[i])) return reason;
  }
  return nullptr;
}

}  // namespace ddsm
