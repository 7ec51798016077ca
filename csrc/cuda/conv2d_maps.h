// The tensor maps of a convolution, or of its gradient of x, on the sm_90a path, and whether it can
// take that path. Pure; no CUDA header.
#pragma once

#include "conv2d_params.h"
#include "tensor_map.h"

namespace ddsm {

// Sizes of the images that are read: x, or grad_y in the gradient.
struct ConvGeometry {
  Math math;
  ConvKind kind;
  int64_t images, height, width;          // of images that are read
  int64_t out_height, out_width;          // of those that are written
  int64_t kernel, stride, padding, scale;
  // Forward: side by side, GEGLU's two as well. Gradient: whose channels lie side by side in
  // grad_y, which is then read as an image of so many pixels a row, while x has one.
  int64_t weights;
  int64_t padding_end;

  // That y has the columns of, side by side.
  int64_t parts() const { return geglu() || gradient() ? 1 : weights; }
  // Tensor maps of the weights that the first source meets.
  int64_t weight_maps() const { return gradient() ? 1 : weights; }
  bool gradient() const { return kind == ConvKind::kGradient; }
  bool geglu() const { return kind == ConvKind::kGeglu; }

  // The box that a filter's first tap walks through, as tensor maps have it. Forward: from -padding
  // on, and its last tap ends at padding_end past the image. Gradient: grad_x[i] gathers from
  // grad_y[i + padding - r], so the lowest tap is r = kernel - 1, and there are as many positions
  // as x has pixels. Enlarged: rows 2 i and 2 i + 1 of the larger image gather from
  // x[i + floor(-padding / 2)] on; a position for each pixel of x.
  int64_t lower() const {
    if (scale > 1) return -((padding + 1) / 2);
    return gradient() ? padding - (kernel - 1) : -padding;
  }
  int64_t upper(int64_t pixels, int64_t out_pixels) const {
    if (scale > 1) return lower();
    return gradient() ? lower() + out_pixels - pixels : padding_end - (kernel - 1);
  }

  // Of the outputs on the sm_90a path: an enlarged image's are computed one class of pixels after
  // the other.
  int64_t phases() const { return scale * scale; }
  int64_t out_pixels() const { return out_height * out_width / phases(); }

  // Of a 1x1 convolution of images of the output's size.
  ConvGeometry pointwise() const {
    return {math, kind, images, out_height, out_width, out_height, out_width, 1, 1, 0, 1, 1, 0};
  }
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
  map.upper_w = g.upper(g.width, g.out_width);
  map.upper_h = g.upper(g.height, g.out_height);
  map.step = g.gradient() ? 1 : g.stride;
  return map;
}

// The slice of the weight that meets one source: `c_in` and `c_out` active channels, what lies
// beyond is zero. Dimensions: input channel, s (of the gradient, the weight), r, output channel.
inline TensorMapSpec weight_map(const WeightView& weight, int64_t first_channel, int64_t c_in,
                                int64_t c_out, const ConvGeometry& g, int32_t tile_n) {
  TensorMapSpec map{};
  map.data = static_cast<const char*>(weight.data) + first_channel * 2;
  map.constant = true;
  map.half_floats = g.math == Math::kFloat16;
  const int64_t columns = g.gradient() && g.weights > 1 ? g.weights : g.kernel;
  const int64_t size[4] = {c_in, columns, g.kernel, c_out};
  const int64_t strides[3] = {columns > 1 ? weight.s_stride : weight.out_stride,
                              g.kernel > 1 ? weight.r_stride : weight.out_stride,
                              weight.out_stride};
  for (int d = 0; d < 4; ++d) map.size[d] = size[d];
  for (int d = 0; d < 3; ++d) map.stride_bytes[d] = strides[d] * 2;
  map.row = kBoxElements;
  map.box[0] = map.box[1] = 1;
  map.box[2] = g.gradient() ? kBoxElements : columns_of_y(g.kind, tile_n);
  return map;
}

// y or the residual: rows of `stride` elements, in boxes of up to 64 columns and a tile's rows.
inline TensorMapSpec rows_map(const void* data, int64_t stride, int64_t m, int64_t n,
                              const ConvGeometry& g, const GemmTile& tile) {
  const int32_t columns = columns_of_y(g.kind, tile.n);
  TensorMapSpec map{};
  map.data = data;
  map.half_floats = g.math == Math::kFloat16;
  const int64_t size[4] = {n, m, 1, 1};
  for (int d = 0; d < 4; ++d) map.size[d] = size[d];
  for (int64_t& bytes : map.stride_bytes) bytes = stride * 2;
  map.row = columns < kBoxElements ? columns : kBoxElements;
  map.box[0] = tile.m > 128 ? 128 : tile.m;  // of a warpgroup
  map.box[1] = map.box[2] = 1;
  return map;
}

struct ConvMaps {
  TensorMapSpec image[kMostSources], weight[kMostSources];  // see HopperConvParams
};

// c_out: columns of a part.
inline ConvMaps conv_maps(const ConvOperands& o, int64_t c_out, const ConvGeometry& g,
                          int32_t tile) {
  ConvMaps maps{};
  const GemmTile& size = kTiles[tile];
  for (int32_t i = 0; i < o.source_count; ++i) {
    const ImageView& source = o.source[i];
    maps.image[i] = image_map(source, g, size.m);
    const int64_t in = g.gradient() ? c_out : source.channels;
    const int64_t out = g.gradient() ? source.channels : c_out;
    maps.weight[i] = weight_map(o.weight[0], source.weight_channel, in, out, g, size.n);
  }
  const auto* first = static_cast<const char*>(maps.weight[0].data);
  for (int32_t part = 0; part < g.weight_maps(); ++part) {
    maps.weight[part] = maps.weight[0];
    maps.weight[part].data = first + o.parts.offset[part] * 2;
  }
  const ConvGeometry pointwise = g.pointwise();
  for (int32_t i = kFirstShortcut; i < kFirstShortcut + o.shortcut_count; ++i) {
    const ImageView& source = o.source[i];
    maps.image[i] = image_map(source, pointwise, size.m);
    maps.weight[i] = weight_map(o.weight[1], source.weight_channel, source.channels, c_out,
                                pointwise, size.n);
  }
  return maps;
}

// Whether there are such numbers beside the sums.
struct ConvTerms {
  bool shift, residual, gate, activation;
};

// Null, or what the sm_90a path can only do where each 64 rows of a tile are of one image.
inline const char* refusal_of_odd_images(const ConvTerms& terms) {
  if (terms.gate) return "the sm_90a path needs images of a multiple of 64 pixels for a gate";
  if (!terms.shift) return nullptr;
  if (terms.activation) {
    return "the sm_90a path needs images of a multiple of 64 pixels for a shift before an "
           "activation";
  }
  if (!terms.residual) return nullptr;
  return "the sm_90a path needs images of a multiple of 64 pixels for a shift beside a residual";
}

// Null, or why the sm_90a path cannot serve; `device`: whether device and build have sm_90a.
inline const char* hopper_refusal(const ConvOperands& o, int64_t c_out, const ConvGeometry& g,
                                  const ConvTerms& terms, bool device) {
  if (!device) {
    return "the sm_90a path needs a GPU of compute capability 9.0, a build for sm_90a, and "
           "DDSM_SM90A not 0";
  }
  if (g.math != Math::kBFloat16 && g.math != Math::kFloat16) {
    return "the sm_90a path needs bfloat16 or float16 images";
  }
  if (!o.aligned()) {
    return "the sm_90a path needs pixels and filters of one type, at multiples of 16 bytes";
  }
  if (g.weights != 1 && o.source_count > 1) {
    return "the sm_90a path needs one source beside several weights";
  }
  if (g.scale != 1 && (g.gradient() || g.stride != 1 || o.shortcut_count > 0)) {
    return "the sm_90a path needs stride 1, no gradient and no shortcut for an enlarged image";
  }
  if (g.scale != 1 && (g.out_height != g.scale * g.height || g.out_width != g.scale * g.width)) {
    return "the sm_90a path needs an enlarged image's output to be of its size";
  }
  if (g.gradient() && g.stride != 1) return "the sm_90a path needs stride 1 for the gradient of x";
  if (g.kernel > 128) return "the sm_90a path needs a kernel of at most 128 taps a side";
  if (g.out_pixels() % 64 != 0) {
    if (const char* reason = refusal_of_odd_images(terms)) return reason;
  }
  const ConvMaps maps = conv_maps(o, c_out, g, kPortableTiles);
  for (int32_t i = 0; i < kMostSources; ++i) {
    if (!maps.image[i].data) continue;
    if (const char* reason = refusal(maps.image[i])) return reason;
    if (const char* reason = refusal(maps.weight[i])) return reason;
  }
  for (int32_t part = 1; part < g.weight_maps(); ++part) {
    if (const char* reason = refusal(maps.weight[part])) return reason;
  }
  return nullptr;
}

}  // namespace ddsm
