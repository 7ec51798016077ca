// The input side of a Winograd convolution: rows of the padded, enlarged, normalised concat of the
// sources in a ring, and their transformed tiles. Only for *_kernel.cpp; see isa.h.
#pragma once

#include <cstring>
#include <type_traits>

#include "group_norm_strips.h"
#include "winograd.h"
#include "winograd_transform.h"

// Fully unrolls a loop over the elements of a tile, which then live in registers or on the stack.
#define DDSM_UNROLL_TILE _Pragma("GCC unroll 36")

namespace ddsm::DDSM_ISA {

// Tiles multiplied at once: enough to use a panel well, few enough to be still in the cache for
// the output transform. On a Zen 4 with 1 MB L2, 56 take 5 to 20 % less time than 96 where the
// panels of all frequencies stay in the L2 (up to 128 x 128 channels), and 10 % more at 256 x 256.
static inline int64_t winograd_tiles(int64_t channels, int64_t lanes) {
  return channels * lanes <= 128 * 128 ? 56 : 96;
}

// A stride of at least `floats` that is an odd number of cache lines: at a power of two, elements
// that far apart would fall into one set of the L1.
static inline int64_t odd_stride(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }

// The same for tiles of few channels, so close together that many of them have sets of their own.
static inline int64_t tile_stride_of(int64_t channels) {
  return channels <= 64 ? round_up(channels, 16) : odd_stride(channels);
}

// Lanes of `lanes` that make whole vectors and, where it is cheaper for what is left, half of one.
static inline int64_t covered_lanes(int64_t lanes) {
  constexpr int64_t kVector = Lanes<float>::kCount;
  return round_up(lanes, kHasHalves ? kVector / 2 : kVector);
}

// Calls body(V{}, lane) so that vectors V, the last one perhaps half of one, cover the lanes.
template <class Body>
DDSM_INLINE void for_each_vector(int64_t lanes, const Body& body) {
  constexpr int64_t kVector = Lanes<float>::kCount;
  int64_t lane = 0;
  for (; lane + (kHasHalves ? kVector / 2 : 0) < lanes; lane += kVector) body(FloatVec{}, lane);
  if constexpr (kHasHalves) {
    if (lane < lanes) body(HalfVec{}, lane);
  }
}

// Calls body(count), with 4 and 8 as constants: a loop over pixels of so few channels is short.
template <class Body>
DDSM_INLINE void with_few(int64_t count, const Body& body) {
  if (count == 4) body(std::integral_constant<int64_t, 4>{});
  else if (count == 8) body(std::integral_constant<int64_t, 8>{});
  else body(count);
}

// `count` elements of T as floats.
template <class T>
DDSM_INLINE void copy_floats(const T* from, int64_t count, float* to) {
  constexpr int64_t kVector = Lanes<float>::kCount;
  int64_t c = 0;
  for (; c + kVector <= count; c += kVector) store(to + c, load(from + c));
  if (c < count) store_few(to + c, load_few(from + c, count - c), count - c);
}

// Pixels of channels that fill no vectors, normalised side by side: a vector holds parts of several
// pixels, and after `period` floats its coefficients come again.
struct PackedNorm {
  int64_t period;
  float* rows;  // [mean, scale, beta][period]

  // Whether a pixel of so many channels wastes much of its vectors, and few of them are a period.
  static bool pays(int64_t channels) {
    return channels % Lanes<float>::kCount != 0 && period_of(channels) <= 8 * Lanes<float>::kCount;
  }
  static int64_t period_of(int64_t channels) {
    int64_t floats = channels;
    while (floats % Lanes<float>::kCount != 0) floats += channels;
    return floats;
  }

  // norm: [3], `stride` apart, of the channels.
  void set(const float* norm, int64_t stride, int64_t channels) {
    for (int64_t at = 0; at < period; at += channels) {
      for (int r = 0; r < 3; ++r) copy_floats(norm + r * stride, channels, rows + r * period + at);
    }
  }

  // to[i] = act((x[i] - mean) * scale + beta) of `count` elements; `to` has room for whole vectors.
  template <bool Silu, class T>
  void apply(const T* x, int64_t count, float* to) const {
    constexpr int64_t kVector = Lanes<float>::kCount;
    for (int64_t i = 0, at = 0; i < count; i += kVector) {
      FloatVec v[1] = {i + kVector <= count ? load(x + i) : load_first(x + i, count - i)};
      v[0] = (v[0] - load(rows + at)) * load(rows + period + at) + load(rows + 2 * period + at);
      if constexpr (Silu) silu(v);
      store(to + i, v[0]);
      at = at + kVector == period ? 0 : at + kVector;
    }
  }
};

template <int kTile, class T>
struct WinogradInput {
  static constexpr int kAlpha = kTile + 2;
  static constexpr int64_t kVector = Lanes<float>::kCount;

  const WinogradProblem& problem;
  int64_t channels, tile_stride;  // of all sources; floats between tiles and a plane's pixels
  bool dense;  // tiles lie side by side without gaps: vectors run over several of them
  int64_t tiles_across, columns;  // of a tile row; pixels of a ring row
  // A ring row holds its columns x in kTile planes: x % kTile says which, x / kTile which pixel of
  // it. So a plane's pixels are kTile apart, as those of neighbouring tiles are.
  float* ring;          // [kAlpha][kTile][plane]
  int64_t plane;        // floats: [pixel][tile_stride] and slack
  int64_t held[kAlpha];  // which row of which image each ring row holds, or one of these
  float* row;            // a source's row, normalised, where its pixels are packed
  PackedNorm packed[2];  // of each source; period 0: not packed
  int64_t packed_image = -1;
  static constexpr int64_t kNothing = -1, kZeros = -2;

  // may_overrun: whether vectors may write into the tiles that follow, which come later.
  WinogradInput(const WinogradProblem& p, Arena& arena, bool may_overrun) : problem(p) {
    channels = 0;
    for (int s = 0; s < p.n_sources; ++s) channels += p.sources[s].channels;
    dense = may_overrun && channels < kVector;
    tile_stride = dense ? channels : tile_stride_of(channels);
    tiles_across = ceil_div(p.width, kTile);
    columns = tiles_across * kTile + 2;
    plane = odd_stride((tiles_across + 1) * tile_stride + kVector);
    ring = arena.take<float>(kAlpha * kTile * plane);
    for (int i = 0; i < kAlpha; ++i) held[i] = kNothing;
    int64_t longest = 0;
    for (int s = 0; s < p.n_sources; ++s) {
      const Conv2dImage& source = p.sources[s];
      packed[s].period = 0;
      if (!p.norm || source.w_stride != source.channels || !PackedNorm::pays(source.channels)) {
        continue;
      }
      packed[s].period = PackedNorm::period_of(source.channels);
      packed[s].rows = arena.take<float>(3 * packed[s].period + kVector);
      longest = larger(longest, p.in_width * source.channels);
    }
    row = arena.take<float>(longest + kVector);
  }

  // A vector may write into what follows the last tile.
  int64_t frequency_stride(int64_t tiles) const {
    return odd_stride(tiles * tile_stride + kVector);
  }

  // To be called once before rows are transformed.
  void begin() {
    // Lanes beyond the last channel feed only products that nobody reads, but must be ordinary.
    if (channels != covered_lanes(channels)) {
      std::memset(ring, 0, sizeof(float) * kAlpha * kTile * plane);
    }
    for (int64_t i = 0; i < kAlpha; ++i) {
      float* to = ring + i * kTile * plane;
      for (int64_t x = 0; x < problem.padding; ++x) clear(to + place_of(x));
      for (int64_t x = problem.padding + width(); x < columns; ++x) clear(to + place_of(x));
    }
  }

  // out[frequency * frequency_stride + tile * tile_stride + channel] of one tile row of image n.
  void transform_row(int64_t n, int64_t tile_row, float* out, int64_t frequency_stride) {
    const float* rows[kAlpha];
    for (int i = 0; i < kAlpha; ++i) rows[i] = padded_row(n, tile_row * kTile + i);
    const int64_t lanes = dense ? tiles_across * channels : channels;
    for (int64_t tile = 0; tile < (dense ? 1 : tiles_across); ++tile) {
      for_each_vector(lanes, [&](auto vector, int64_t lane) {
        transform<decltype(vector)>(rows, tile * tile_stride + lane, out, frequency_stride);
      });
    }
  }

 private:
  // One vector of tiles and channels, at float `at` of a plane and of a frequency.
  template <class V>
  DDSM_INLINE void transform(const float* const (&rows)[kAlpha], int64_t at, float* out,
                             int64_t frequency_stride) const {
    V d[kAlpha * kAlpha], v[kAlpha * kAlpha];
    DDSM_UNROLL
    for (int i = 0; i < kAlpha; ++i) {
      DDSM_UNROLL
      for (int j = 0; j < kAlpha; ++j) d[i * kAlpha + j] = load_as<V>(rows[i] + at + place_of(j));
    }
    transform_tile<kAlpha, kAlpha>(d, v, Winograd<kTile>::template input<V>);
    DDSM_UNROLL_TILE
    for (int f = 0; f < kAlpha * kAlpha; ++f) store_as(out + at + f * frequency_stride, v[f]);
  }

  // Where a column lies in a ring row.
  DDSM_INLINE int64_t place_of(int64_t column) const {
    return column % kTile * plane + column / kTile * tile_stride;
  }

  // Row `row` of the padded image n, from the ring.
  const float* padded_row(int64_t n, int64_t index) {
    const int64_t slot = index % kAlpha, key = n * (problem.height + kAlpha) + index;
    float* to = ring + slot * kTile * plane;
    const int64_t scale = problem.scale, y = index - problem.padding;
    if (y < 0 || y >= problem.in_height * scale) {
      if (held[slot] != kZeros) std::memset(to, 0, sizeof(float) * kTile * plane);
      held[slot] = kZeros;
      return to;
    }
    if (held[slot] == key) return to;
    held[slot] = key;
    int64_t first = 0;
    for (int s = 0; s < problem.n_sources; ++s) {
      const Conv2dImage& source = problem.sources[s];
      const T* from = static_cast<const T*>(source.data) + n * source.n_stride +
                      y / scale * source.h_stride;
      fill(n, s, from, first, to + first);
      first += source.channels;
    }
    return to;
  }

  // Columns that hold pixels, behind the padding.
  int64_t width() const {
    return smaller(problem.in_width * problem.scale, columns - problem.padding);
  }

  void clear(float* pixel) const { std::memset(pixel, 0, sizeof(float) * channels); }

  // A row of the source `s`, before whose channels come `first` others.
  void fill(int64_t n, int s, const T* from, int64_t first, float* to) {
    const int64_t c = problem.sources[s].channels, stride = problem.sources[s].w_stride;
    const float* norm = problem.norm ? problem.norm + n * 3 * channels + first : nullptr;
    if (packed[s].period > 0) {
      if (packed_image != n) set_packed(n);
      const int64_t floats = problem.in_width * c;
      problem.norm_silu ? packed[s].template apply<true>(from, floats, row)
                        : packed[s].template apply<false>(from, floats, row);
      with_few(c, [&](auto count) {
        each_column([&](int64_t x, int64_t place) {
          copy_floats(row + x * count, count, to + place);
        });
      });
    } else if (!norm) {
      with_few(c, [&](auto count) {
        each_column([&](int64_t x, int64_t place) {
          copy_floats(from + x * stride, count, to + place);
        });
      });
    } else {
      each_column([&](int64_t x, int64_t place) {
        problem.norm_silu ? apply_row<true>(from + x * stride, norm, channels, c, to + place)
                          : apply_row<false>(from + x * stride, norm, channels, c, to + place);
      });
    }
  }

  // Calls body(pixel of a source, place in a ring row) for the columns behind the padding.
  template <class Body>
  DDSM_INLINE void each_column(const Body& body) const {
    const int64_t first = problem.padding, count = width();
    int64_t plane_of = first % kTile, pixel = first / kTile;
    for (int64_t x = 0; x < count; ++x) {
      body(problem.scale == 1 ? x : x / problem.scale, plane_of * plane + pixel * tile_stride);
      if (++plane_of == kTile) {
        plane_of = 0;
        ++pixel;
      }
    }
  }

  void set_packed(int64_t n) {
    const float* norm = problem.norm + n * 3 * channels;
    for (int s = 0; s < problem.n_sources; norm += problem.sources[s++].channels) {
      if (packed[s].period > 0) packed[s].set(norm, channels, problem.sources[s].channels);
    }
    packed_image = n;
  }
};

}  // namespace ddsm::DDSM_ISA
