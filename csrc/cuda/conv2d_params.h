// What the convolution kernels are launched with: built by conv2d.cu, no CUDA header.
#pragma once

#include <cstdint>

#include "ddsm/activation.h"
#include "index_maps.h"
#include "moments.h"
#include "tile_choice.h"

namespace ddsm {

// Images whose channels are adjacent; strides in elements.
struct ImageView {
  const void* data;
  int64_t n_stride, h_stride, w_stride;
  int32_t channels;
  bool vector;             // every pixel starts at a multiple of 16 bytes
  int64_t weight_channel;  // that its first channel meets
};

struct WeightView {
  void* data;
  int64_t out_stride, in_stride, r_stride, s_stride;
  bool vector;  // input channels are adjacent, and start at multiples of 16 bytes
  bool wide;    // float32 beside 16-bit images
};

// Pixel index over all images -> image, row, column.
struct PixelMap {
  Divider pixels, width;

  struct Pixel {
    int32_t image, h, w;
  };
  DDSM_HOST_DEVICE Pixel at(int32_t index) const {
    const int32_t image = pixels.quotient(index);
    const int32_t in_image = index - image * static_cast<int32_t>(pixels.divisor);
    const int32_t h = width.quotient(in_image);
    return {image, h, in_image - h * static_cast<int32_t>(width.divisor)};
  }
};

// Weights side by side, each with its own memory: `columns` of y belong to each.
struct PartMap {
  Divider columns;
  int64_t offset[kConvParts];    // from WeightView::data
  const void* bias[kConvParts];  // null: zero

  DDSM_HOST_DEVICE int32_t part(int32_t column) const { return columns.quotient(column); }
  // The output channel of its weight that a column of part `part` is.
  DDSM_HOST_DEVICE int32_t channel(int32_t column, int32_t part) const {
    return column - part * static_cast<int32_t>(columns.divisor);
  }
  // Not by an index: it would copy the parameters to local memory.
  DDSM_HOST_DEVICE int64_t offset_of(int32_t part) const {
    return part == 0 ? offset[0] : part == 1 ? offset[1] : offset[2];
  }
  DDSM_HOST_DEVICE const void* bias_of(int32_t part) const {
    return part == 0 ? bias[0] : part == 1 ? bias[1] : bias[2];
  }
};

// What a kernel computes: y, perhaps with an activation or a gate, of one block of columns or, by
// GEGLU, of two; or the gradient of x.
enum class ConvKind { kForward, kActivated, kGeglu, kGradient };

DDSM_HOST_DEVICE constexpr bool is_activated(ConvKind kind) {
  return kind == ConvKind::kActivated || kind == ConvKind::kGeglu;
}
// Columns of y in a tile of so many columns of the product. By GEGLU the first half are values, the
// second half the gate halves of the same columns: a thread has both.
DDSM_HOST_DEVICE constexpr int columns_of_y(ConvKind kind, int columns) {
  return kind == ConvKind::kGeglu ? columns / 2 : columns;
}

// What becomes of a sum before it is stored; conv2d_cuda.h has the formula.
struct EpilogueParams {
  void* y;  // [m, n], or the pixels of `pixel_class` in [images, pixels, n]
  const void *shift, *residual, *shortcut_bias, *gate;
  int64_t y_stride, shift_stride, residual_stride, gate_stride;
  Activation activation;
  Moments* moments;  // [images, classes, moment_blocks(pixels of a class), n]
  int64_t pixels;    // of an image of y
  PixelClass pixel_class;
  bool bias_wide;    // bias is float32 beside a 16-bit y
  bool vector;       // rows of y and residual are multiples of 16 bytes
  float gain = 1;
};

// Sources of a window, and behind them those of a shortcut.
constexpr int32_t kMostSources = 4, kFirstShortcut = 2;

struct ConvOperands {
  ImageView source[kMostSources];
  int32_t source_count, shortcut_count;
  WeightView weight[2];  // the window's and the shortcut's
  PartMap parts;

  // True if every operand can be read in chunks of 16 bytes.
  bool aligned() const {
    bool all = weight[0].vector && !weight[0].wide;
    for (int i = 0; i < source_count; ++i) all &= source[i].vector;
    for (int i = 0; i < shortcut_count; ++i) all &= source[kFirstShortcut + i].vector;
    return all && (shortcut_count == 0 || (weight[1].vector && !weight[1].wide));
  }
};

// Forward and gradient of x: y[m, n] = sum over taps, sources, channels, and over the shortcut's
// sources and channels. m counts pixels of y, or of one of its classes.
struct ConvParams : ConvOperands {
  TapMap taps;
  GatherAxis h, w;
  PixelMap rows;
  int32_t m, n, steps, splits;  // n: columns of y
  EpilogueParams epilogue;
  float* partial;     // [tiles of y, splits, tile] if splits > 1
  unsigned* tickets;  // [tiles of y]: splits that have come
  bool overlaps;      // see LaunchShape
};

// Gradient of the weight: grad[o, c, r, s] += sum over pixels of grad_y and the gathered x.
struct GradWeightParams {
  ImageView grad_y;
  ImageView source[2];
  int32_t source_count;
  WeightView grad;
  TapMap taps;
  GatherAxis h, w;
  PixelMap rows;
  int32_t pixels;  // of grad_y, all images: the K of this product
  int32_t c_out, c_in;  // c_in: of both sources
  int32_t steps, splits;
  float* partial;       // [splits, taps, c_out, c_in] if splits > 1
  void* grad_bias;      // [c_out] like grad; null: not wanted
  float* bias_partial;  // [blocks of kBiasPixels pixels, c_out]
};

// A split's first step: splits differ by one step at most.
DDSM_HOST_DEVICE inline int32_t split_begin(int32_t steps, int32_t split, int32_t splits) {
  return static_cast<int32_t>(static_cast<int64_t>(steps) * split / splits);
}

// Pixels that one block sums for the bias gradient.
constexpr int64_t kBiasPixels = 1024;

// Launches of one way to multiply, instantiated in conv2d_*.cu, conv2d_activated_*.cu and
// conv2d_grad_weight_*.cu.
template <class MathKind>
const char* launch_conv(const ConvParams& params, int32_t tile, bool gradient, bool aligned,
                        void* stream);
template <class MathKind>
const char* launch_conv_activated(const ConvParams& params, int32_t tile, bool geglu, bool aligned,
                                  void* stream);
template <class MathKind>
const char* launch_grad_weight(const GradWeightParams& params, int32_t tile, bool aligned,
                               void* stream);

}  // namespace ddsm
