// What the GEMM kernels of one instruction set share: tile sizes and the indirection table. Only
// for *_kernel.cpp; see isa.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arithmetic.h"
#include "gemm.h"
#include "isa.h"
#include "lanes.h"

#define DDSM_INLINE inline __attribute__((always_inline))
// Before a loop over accumulators: unrolled early, they live in registers; else GCC 12 keeps the
// array in memory around the inner loop.
#define DDSM_UNROLL _Pragma("GCC unroll 16")

namespace ddsm::DDSM_ISA {

// The accumulators take 28 of 32 (AVX-512) or 12 of 16 (AVX2) vector registers. 14 row pointers are
// more than fit the general registers beside the rest; yet on a Zen 4 a step of 8 images takes 0 to
// 4 % less than with 12 rows, and one of 1 image as long.
constexpr int kTileRows = kVectorBytes == 64 ? 14 : kVectorBytes == 32 ? 6 : 4;
constexpr int kPanelVectors = 2;

template <class T>
constexpr int kPanelLanes = Lanes<Compute<T>>::kCount * kPanelVectors;

// Depth of a panel row: bfloat16 operands (gemm.h) are multiplied in pairs of depth.
template <class T>
constexpr int kDepthStep = sizeof(Compute<T>) / sizeof(T);
template <class T>
constexpr int kPanelRow = kPanelLanes<T> * kDepthStep<T>;

// The vectors that cover the lanes in use of a panel: whole ones, then perhaps half of one.
template <int kWhole, bool kHalf>
struct PanelShape {
  static constexpr int kVectors = kWhole;
  static constexpr bool kHasHalf = kHalf;
};

// Calls body(Shape{}) with what covers `lanes` (> 0) of a panel.
template <class T, class Body>
DDSM_INLINE void with_panel_shape(int64_t lanes, const Body& body) {
  constexpr int64_t kVector = Lanes<Compute<T>>::kCount;
  if constexpr (kHasHalves && sizeof(T) == sizeof(float)) {
    if (lanes <= kVector / 2) return body(PanelShape<0, true>{});
    if (lanes > kVector && lanes <= kVector + kVector / 2) return body(PanelShape<1, true>{});
  }
  if (lanes <= kVector) body(PanelShape<1, false>{});
  else body(PanelShape<kPanelVectors, false>{});
}

// Where a panel lies: its part of y and of the weight, and its lanes there (GEGLU: of both parts).
struct PanelPlace {
  int64_t part, lane, lanes;
};

// The lanes of a part that a panel holds.
template <class T>
static inline int64_t panel_width(const GemmArgs& problem) {
  static_assert(kPanelVectors == 2, "a vector of each part");
  return is_glu(problem) ? Lanes<Compute<T>>::kCount : kPanelLanes<T>;
}

template <class T>
static inline PanelPlace panel_place(const GemmArgs& problem, int64_t panel) {
  const int64_t width = panel_width<T>(problem), of_part = ceil_div(problem.lanes, width);
  const int64_t lane = panel % of_part * width;
  return {panel / of_part, lane, smaller(width, problem.lanes - lane)};
}

// A row of sums, or of a panel.
template <class C, class Shape>
struct PanelSum {
  static constexpr int kVectors = Shape::kVectors, kLanes = Lanes<C>::kCount;

  Vec<C> whole[kVectors > 0 ? kVectors : 1];
  HalfVec half;

  DDSM_INLINE void clear() {
    DDSM_UNROLL
    for (int v = 0; v < kVectors; ++v) whole[v] = Vec<C>{};
    if constexpr (Shape::kHasHalf) half = HalfVec{};
  }
  DDSM_INLINE void add(const PanelSum& more) {
    DDSM_UNROLL
    for (int v = 0; v < kVectors; ++v) whole[v] += more.whole[v];
    if constexpr (Shape::kHasHalf) half += more.half;
  }
  DDSM_INLINE void add_product(C a, const PanelSum& b) {
    DDSM_UNROLL
    for (int v = 0; v < kVectors; ++v) whole[v] += a * b.whole[v];
    if constexpr (Shape::kHasHalf) half += a * b.half;
  }
  DDSM_INLINE void read(const C* from) {
    DDSM_UNROLL
    for (int v = 0; v < kVectors; ++v) whole[v] = load(from + v * kLanes);
    if constexpr (Shape::kHasHalf) half = load_as<HalfVec>(from + kVectors * kLanes);
  }
  DDSM_INLINE void write(C* to) const {
    DDSM_UNROLL
    for (int v = 0; v < kVectors; ++v) store(to + v * kLanes, whole[v]);
    if constexpr (Shape::kHasHalf) store_as(to + kVectors * kLanes, half);
  }
};

// Fetches the panel row that is multiplied 24 rows (1.5 or 3 KB) later. The rows of A take the
// hardware's streams, so it falls behind on the panel: on a Zen 3 this made products of depth 128
// and more 10-20 % faster.
constexpr int kRowsAhead = 24;
template <class T>
DDSM_INLINE void prefetch_panel(const T* row) {
  constexpr int kLine = 64 / sizeof(T);
  DDSM_UNROLL
  for (int at = 0; at < kPanelRow<T>; at += kLine) {
    __builtin_prefetch(row + kRowsAhead * kPanelRow<T> + at);
  }
}

// Brings a panel row into the L2 (a prefetch past the end of memory is no access).
template <class T>
DDSM_INLINE void fetch_to_l2(const T* row) {
  constexpr int kLine = 64 / sizeof(T);
  DDSM_UNROLL
  for (int at = 0; at < kPanelLanes<T>; at += kLine) __builtin_prefetch(row + at, 0, 2);
}

// Hands out pieces of a workspace; with a null base it only adds up what is needed.
struct Arena {
  char* base;
  size_t used;

  template <class T>
  T* take(int64_t count) {
    T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
};

static inline int64_t total_channels(const GemmArgs& problem) {
  int64_t channels = 0;
  for (int s = 0; s < problem.n_sources; ++s) channels += problem.sources[s].channels;
  return channels;
}

static inline int64_t most_channels(const GemmArgs& problem) {
  int64_t channels = 0;
  for (int s = 0; s < problem.n_sources; ++s) {
    channels = larger(channels, problem.sources[s].channels);
  }
  return channels;
}

// A position in a phase's pixels, counted over images, rows and columns.
struct PixelCursor {
  int64_t n, i, j;
};

static inline PixelCursor pixel_at(const GemmPhase& phase, int64_t pixel) {
  const int64_t per_image = phase.rows * phase.cols;
  const int64_t within = pixel % per_image;
  return {pixel / per_image, within / phase.cols, within % phase.cols};
}

DDSM_INLINE void next_row(const GemmPhase& phase, PixelCursor& at) {
  at.j = 0;
  if (++at.i == phase.rows) {
    at.i = 0;
    ++at.n;
  }
}

// table[(source * n_taps + tap) * table_stride + q] = the source row that pixel first + q sees
// through the tap, or zero_row outside the image.
template <class T>
static void build_table(const GemmArgs& problem, const GemmPhase& phase, int64_t first,
                        int64_t count, const T* zero_row, const T** table, int64_t table_stride) {
  const PixelCursor start = pixel_at(phase, first);
  for (int s = 0; s < problem.n_sources; ++s) {
    const GemmSource& source = problem.sources[s];
    for (int t = 0; t < phase.n_taps; ++t) {
      const GemmTap& tap = phase.taps[t];
      const T** row = table + (s * phase.n_taps + t) * table_stride;
      PixelCursor at = start;
      for (int64_t filled = 0; filled < count;) {
        const int64_t run = smaller(phase.cols - at.j, count - filled);
        const int64_t y = at.i * phase.step + tap.dy;
        if (y < 0 || y >= source.height) {
          for (int64_t q = 0; q < run; ++q) row[filled + q] = zero_row;
        } else {
          const T* base = static_cast<const T*>(source.data) + at.n * source.n_stride +
                          y * source.h_stride;
          for (int64_t q = 0; q < run; ++q) {
            const int64_t x = (at.j + q) * phase.step + tap.dx;
            row[filled + q] = x >= 0 && x < source.width ? base + x * source.w_stride : zero_row;
          }
        }
        filled += run;
        next_row(phase, at);
      }
    }
  }
}

// rows[q] = where pixel first + q of y lies.
template <class T>
static void locate_pixels(const GemmArgs& problem, const GemmPhase& phase, int64_t first,
                          int64_t count, T** rows) {
  PixelCursor at = pixel_at(phase, first);
  for (int64_t filled = 0; filled < count;) {
    const int64_t run = smaller(phase.cols - at.j, count - filled);
    T* base = static_cast<T*>(problem.y) + at.n * problem.y_n_stride + phase.y_offset +
              at.i * phase.y_row_stride + at.j * phase.y_col_stride;
    for (int64_t q = 0; q < run; ++q) rows[filled + q] = base + q * phase.y_col_stride;
    filled += run;
    next_row(phase, at);
  }
}

}  // namespace ddsm::DDSM_ISA
