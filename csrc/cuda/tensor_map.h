// What a bulk tensor copy (TMA) reads: images as im2col sees them, or a weight in boxes. Pure, with
// the limits that the driver and the PTX ISA document. No CUDA header.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ddsm {

// A row of an operand's box in shared memory, and the span within which its chunks of 16 bytes are
// permuted (CU_TENSOR_MAP_SWIZZLE_128B).
constexpr uint32_t kSwizzleBytes = 128;
// The permutation repeats after 8 rows; a tile that starts at such a multiple needs no base offset.
constexpr uint32_t kSwizzleAtomBytes = 8 * kSwizzleBytes;

// Where the byte that a box without permutation has at `address` lies, for rows of 128 or 64 bytes:
// bits 4 to 6 (4 and 5) of the address are xored with bits 7 to 9 (7 and 8). PTX ISA, "Swizzling
// modes", 128B and 64B with an atom of 16 bytes.
DDSM_HOST_DEVICE constexpr uint32_t swizzled(uint32_t address, uint32_t row_bytes) {
  return address ^ (address >> 7 & (row_bytes / 16 - 1)) << 4;
}

// A tensor of four dimensions, innermost first, of elements of 2 bytes.
//   im2col   C, W, H, N; rows are `pixels` positions of a filter's corner, that walk through
//            [lower, size - 1 + upper] of W, then H, by `step`, then N
//   tiled    rows are the box's elements of dimensions 1, 2 and 3, the innermost first
struct TensorMapSpec {
  const void* data;
  bool half_floats;        // float16, else bfloat16
  bool im2col;
  int64_t size[4];
  int64_t stride_bytes[3];  // of dimensions 1, 2, 3
  int64_t row;              // elements of dimension 0 that a box holds: 64 or 32, the swizzle's
  int64_t box[3];           // tiled: of dimensions 1, 2, 3
  int64_t pixels;           // im2col
  int64_t lower;            // im2col: of W and of H
  int64_t upper_w, upper_h;  // im2col
  int64_t step;             // im2col: of W and of H
  bool constant;            // no kernel of the stream writes the memory
};

// Null, or why no tensor map can describe it. CUDA driver API, cuTensorMapEncodeTiled and
// cuTensorMapEncodeIm2col.
inline const char* refusal(const TensorMapSpec& t) {
  if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0) {
    return "a tensor map needs memory aligned to 16 bytes";
  }
  for (const int64_t size : t.size) {
    if (size < 1 || size > int64_t(1) << 32) return "a tensor map needs dimensions of 1 to 2^32";
  }
  for (const int64_t stride : t.stride_bytes) {
    if (stride % 16 != 0) return "a tensor map needs strides of multiples of 16 bytes";
    if (stride < 0 || stride >= int64_t(1) << 40) {
      return "a tensor map needs strides below 2^40 bytes";
    }
  }
  if (t.row != 64 && t.row != 32) return "a tensor map needs rows as long as the swizzle";
  if (!t.im2col) {
    for (const int64_t box : t.box) {
      if (box < 1 || box > 256) return "a tensor map needs boxes of 1 to 256 elements a side";
    }
    return nullptr;
  }
  const auto is_corner = [](int64_t place) { return place >= -128 && place <= 127; };
  if (!is_corner(t.lower) || !is_corner(t.upper_w) || !is_corner(t.upper_h)) {
    return "a tensor map needs corners of the pixel box of -128 to 127";
  }
  if (t.size[1] + t.upper_w <= t.lower || t.size[2] + t.upper_h <= t.lower) {
    return "a tensor map needs a pixel box with pixels";
  }
  if (t.pixels < 1 || t.pixels > 1024) return "a tensor map needs columns of 1 to 1024 pixels";
  if (t.step < 1 || t.step > 8) return "a tensor map needs a traversal stride of 1 to 8";
  return nullptr;
}

}  // namespace ddsm
