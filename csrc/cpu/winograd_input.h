// The input side of a Winograd convolution: rows of the padded, enlarged, normalised concat of the
// sources in a ring, and their transformed tiles. Only for *_kernel.cpp; see isa.h.
#pragma once

#include <cstring>

#include "group_norm_strips.h"
#include "winograd.h"
#include "winograd_transform.h"

// Fully unrolls a loop over the elements of a tile, which then live in registers or on the stack.
#define DDSM_UNROLL_TILE _Pragma("GCC unroll 36")

namespace ddsm::DDSM_ISA {

// Tiles multiplied at once: enough to use a panel well, few enough to be still in the cache for
// the output transform.
constexpr int64_t kWinogradTiles = 96;

// A stride of at least `floats` that is an odd number of cache lines: at a power of two, elements
// that far apart would fall into one set of the L1.
static inline int64_t odd_stride(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }

template <int kTile, class T>
struct WinogradInput {
  static constexpr int kAlpha = kTile + 2;
  static constexpr int64_t kVector = Lanes<float>::kCount;

  const WinogradProblem& problem;
  int64_t channels, used, tile_stride;  // of all sources; in whole vectors; between tiles
  int64_t tiles_across, columns;  // of a tile row; pixels of a ring row
  float* ring;                    // [kAlpha][columns][tile_stride]
  int64_t held[kAlpha];           // which row of which image each ring row holds, -1: none

  WinogradInput(const WinogradProblem& p, Arena& arena) : problem(p) {
    channels = 0;
    for (int s = 0; s < p.n_sources; ++s) channels += p.sources[s].channels;
    used = round_up(channels, kVector);
    tile_stride = stride_of(channels);
    tiles_across = ceil_div(p.width, kTile);
    columns = tiles_across * kTile + 2;
    ring = arena.take<float>(kAlpha * columns * tile_stride);
    for (int i = 0; i < kAlpha; ++i) held[i] = -1;
  }

  // Floats between tiles, and between pixels of the ring.
  static int64_t stride_of(int64_t channels) { return odd_stride(channels); }

  int64_t frequency_stride(int64_t tiles) const { return odd_stride(tiles * tile_stride); }

  // out[frequency * frequency_stride + tile * tile_stride + channel] of one tile row of image n.
  void transform_row(int64_t n, int64_t tile_row, float* out, int64_t frequency_stride) {
    const float* rows[kAlpha];
    for (int i = 0; i < kAlpha; ++i) rows[i] = padded_row(n, tile_row * kTile + i);
    for (int64_t tile = 0; tile < tiles_across; ++tile) {
      for (int64_t c = 0; c < used; c += kVector) {
        const int64_t at = tile * kTile * tile_stride + c;
        FloatVec d[kAlpha * kAlpha], v[kAlpha * kAlpha];
        DDSM_UNROLL
        for (int i = 0; i < kAlpha; ++i) {
          DDSM_UNROLL
          for (int j = 0; j < kAlpha; ++j) {
            d[i * kAlpha + j] = load(rows[i] + at + j * tile_stride);
          }
        }
        transform_tile<kAlpha, kAlpha>(d, v, Winograd<kTile>::input);
        float* to = out + tile * tile_stride + c;
        DDSM_UNROLL_TILE
        for (int f = 0; f < kAlpha * kAlpha; ++f) store(to + f * frequency_stride, v[f]);
      }
    }
  }

 private:
  // Row `row` of the padded image n, from the ring.
  const float* padded_row(int64_t n, int64_t row) {
    const int64_t slot = row % kAlpha, key = n * (problem.height + kAlpha) + row;
    float* to = ring + slot * columns * tile_stride;
    if (held[slot] == key) return to;
    held[slot] = key;
    const int64_t height = problem.in_height * problem.scale;
    const int64_t width = problem.in_width * problem.scale;
    const int64_t y = row - problem.padding;
    if (y < 0 || y >= height) {
      std::memset(to, 0, sizeof(float) * columns * tile_stride);
      return to;
    }
    for (int64_t column = 0; column < columns; ++column, to += tile_stride) {
      const int64_t x = column - problem.padding;
      if (x < 0 || x >= width) {
        std::memset(to, 0, sizeof(float) * tile_stride);
      } else {
        // Channels beyond the last feed only products that nobody reads, but must be ordinary.
        store(to + used - kVector, FloatVec{});
        fill_pixel(n, y / problem.scale, x / problem.scale, to);
      }
    }
    return ring + slot * columns * tile_stride;
  }

  void fill_pixel(int64_t n, int64_t y, int64_t x, float* to) const {
    const float* norm = problem.norm ? problem.norm + n * 3 * channels : nullptr;
    for (int s = 0; s < problem.n_sources; ++s) {
      const Conv2dImage& source = problem.sources[s];
      const T* from = static_cast<const T*>(source.data) + n * source.n_stride +
                      y * source.h_stride + x * source.w_stride;
      const int64_t c = source.channels;
      if (!norm) {
        copy_row(from, c, to);
      } else if (problem.norm_silu) {
        apply_row<true>(from, norm, channels, c, to);
      } else {
        apply_row<false>(from, norm, channels, c, to);
      }
      to += c;
      if (norm) norm += c;
    }
  }

  static void copy_row(const T* from, int64_t count, float* to) {
    if constexpr (sizeof(T) == sizeof(float)) {
      std::memcpy(to, from, sizeof(float) * count);
    } else {
      int64_t c = 0;
      for (; c + kVector <= count; c += kVector) store(to + c, load(from + c));
      for (; c < count; ++c) to[c] = to_compute(from[c]);
    }
  }
};

}  // namespace ddsm::DDSM_ISA
