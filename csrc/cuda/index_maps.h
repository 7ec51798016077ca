// Index arithmetic of the CUDA kernels, shared with their tests. No CUDA header.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ddsm {

// Quotients by a number that is fixed for a launch, for 0 <= n < 2^31.
// Source: Granlund & Montgomery 1994, "Division by invariant integers using multiplication",
// theorem 4.2.
struct Divider {
  uint32_t divisor = 1, multiplier = 0, shift = 0;

  Divider() = default;
  explicit Divider(int64_t d) : divisor(static_cast<uint32_t>(d)) {
    if (divisor == 1) return;
    while ((uint64_t(1) << shift) < divisor) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t(1) << (31 + shift)) + divisor - 1) / divisor);
    --shift;  // the product's high word is already a shift by 32
  }
  DDSM_HOST_DEVICE int32_t quotient(int32_t n) const {
    if (divisor == 1) return n;
    return static_cast<int32_t>(
        static_cast<uint32_t>(uint64_t(static_cast<uint32_t>(n)) * multiplier >> 32) >> shift);
  }
};

// Which source row (or column) meets a destination row: position = destination * step + offset,
// and the source is position >> shift, if 0 <= position < limit and position & mask is 0.
//   forward    step = stride, limit = size * scale,       shift = scale - 1,  mask = 0
//   gradient   step = scale,  limit = out_size * stride,  shift = stride - 1, mask = stride - 1
struct GatherAxis {
  int32_t step, limit, shift, mask;

  DDSM_HOST_DEVICE bool valid(int32_t position) const {
    return static_cast<uint32_t>(position) < static_cast<uint32_t>(limit) && (position & mask) == 0;
  }
  DDSM_HOST_DEVICE int32_t source(int32_t position) const { return position >> shift; }
};

inline GatherAxis forward_axis(int64_t size, int64_t stride, int64_t scale) {
  return {static_cast<int32_t>(stride), static_cast<int32_t>(size * scale),
          static_cast<int32_t>(scale - 1), 0};
}
inline GatherAxis gradient_axis(int64_t out_size, int64_t stride, int64_t scale) {
  const auto last = static_cast<int32_t>(stride - 1);
  return {static_cast<int32_t>(scale), static_cast<int32_t>(out_size * stride), last, last};
}

// Weight taps in the order of the K loop: those of a window's rows (and columns) `first`,
// first + every, ..., of which the i-th meets the source at an offset of `offset` + sign * i. In
// the gradient an enlarged image's pixel gathers from scale * scale positions, each a tap of its
// own.
struct TapMap {
  struct Axis {
    int32_t first, offset, count;
  };
  Axis h, w;
  Divider columns;  // w.count
  int32_t every, sign, repeat;  // repeat: 1 forward, scale (1 or 2) in the gradient

  struct Tap {
    int32_t r, s, h_offset, w_offset;
  };
  DDSM_HOST_DEVICE int32_t count() const { return h.count * w.count * repeat * repeat; }
  DDSM_HOST_DEVICE Tap tap(int32_t index) const {
    const int32_t last = repeat - 1;  // the number of its bits too
    const int32_t a = index >> last & last, b = index & last, weight = index >> 2 * last;
    const int32_t i = columns.quotient(weight), j = weight - i * w.count;
    return {h.first + every * i, w.first + every * j, a + h.offset + sign * i,
            b + w.offset + sign * j};
  }
};

inline TapMap forward_taps(int32_t kernel, int64_t padding) {
  const TapMap::Axis axis{0, static_cast<int32_t>(-padding), kernel};
  return {axis, axis, Divider(kernel), 1, 1, 1};
}
inline TapMap gradient_taps(int32_t kernel, int64_t padding, int64_t scale) {
  const TapMap::Axis axis{0, static_cast<int32_t>(padding), kernel};
  return {axis, axis, Divider(kernel), 1, -1, static_cast<int32_t>(scale)};
}

// The pixels (h, w) of an image with h % every = first_h and w % every = first_w, in row-major
// order. At stride 2 the gradient of x is four convolutions, one for each of these classes, as a
// class meets only every other row and column of the window: a quarter of the products.
struct PixelClass {
  int32_t every = 1, first_h = 0, first_w = 0, width = 0;  // width: of the whole image

  // Where the class's pixel (h, w) lies in the image.
  DDSM_HOST_DEVICE int64_t place(int32_t h, int32_t w) const {
    return int64_t(h * every + first_h) * width + w * every + first_w;
  }
  // Rows (or columns) of `size` that the class has.
  int64_t count(int64_t size, int32_t first) const { return (size - first + every - 1) / every; }
};

// A class's taps for the gradient of x at stride `every`.
inline TapMap class_taps(const PixelClass& pixels, int32_t kernel, int64_t padding) {
  auto axis = [&](int32_t first) {
    const auto from = first + static_cast<int32_t>(padding), tap = from % pixels.every;
    const int32_t count = kernel > tap ? (kernel - tap + pixels.every - 1) / pixels.every : 0;
    return TapMap::Axis{tap, (from - tap) / pixels.every, count};
  };
  const TapMap::Axis h = axis(pixels.first_h), w = axis(pixels.first_w);
  return {h, w, Divider(w.count > 0 ? w.count : 1), pixels.every, -1, 1};
}

// Where the 16-byte chunk `chunk` of line `line` lies in a tile of `chunks` chunks a line (4 or a
// multiple of 8): permuted so that the accesses of a warp fall into different banks.
//   ldmatrix    8 consecutive lines at one chunk
//   words       4 consecutive lines, two chunks of each (32-bit elements with adjacent m or n)
DDSM_HOST_DEVICE inline int32_t swizzled_for_ldmatrix(int32_t line, int32_t chunk, int32_t chunks) {
  return line * chunks + (chunk ^ (chunks == 4 ? line >> 1 & 3 : line & 7));
}
DDSM_HOST_DEVICE inline int32_t swizzled_for_words(int32_t line, int32_t chunk, int32_t chunks) {
  return line * chunks + (chunk ^ (line & 3) << 1);
}

// The gradient of x of several 1x1 weights, whose channels are pixels of a row of grad_y, a tap
// each.
inline TapMap part_taps(int64_t parts) {
  const auto count = static_cast<int32_t>(parts);
  return {{0, 0, 1}, {0, 0, count}, Divider(count), 1, 1, 1};
}

// Group norm moments are taken over blocks of kMomentPixels pixels, counted over all images, so
// that a convolution's tiles hold whole blocks; a block may hold the end of one image and the start
// of the next.
constexpr int64_t kMomentPixels = 64;

// Blocks that an image of `pixels` pixels touches at most.
DDSM_HOST_DEVICE inline int64_t moment_blocks(int64_t pixels) {
  if (pixels % kMomentPixels == 0) return pixels / kMomentPixels;
  if (kMomentPixels % pixels == 0) return 1;
  return (pixels + kMomentPixels - 2) / kMomentPixels + 1;
}
// Where the `block`-th of the blocks that image `image` touches begins, as a pixel of the image.
DDSM_HOST_DEVICE inline int64_t moment_block_begin(int64_t pixels, int64_t image, int64_t block) {
  const int64_t begin = image * pixels;
  const int64_t first = (begin / kMomentPixels + block) * kMomentPixels;
  return first > begin ? first - begin : 0;
}
// Pixels of the image in that block; 0 past the last block that it touches.
DDSM_HOST_DEVICE inline int64_t moment_block_pixels(int64_t pixels, int64_t image, int64_t block) {
  const int64_t begin = image * pixels, end = begin + pixels;
  const int64_t first = (begin / kMomentPixels + block) * kMomentPixels;
  const int64_t from = first > begin ? first : begin;
  const int64_t to = first + kMomentPixels < end ? first + kMomentPixels : end;
  return to > from ? to - from : 0;
}

}  // namespace ddsm
