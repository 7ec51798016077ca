// Packs panels of weights straight from the parameter, so that no copy of a slice exists beyond
// the few panels in use. Only for *_kernel.cpp; see isa.h.
#pragma once

#include "gemm_tile.h"

namespace ddsm::DDSM_ISA {

constexpr int64_t kPackDepth = 32;  // depth packed at a time: 9 taps x 32 x 16 lanes = 18 KB

#if defined(__AVX2__)
typedef float Float8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t Int8 __attribute__((vector_size(32)));

DDSM_INLINE Float8 load8(const float* from) { return *reinterpret_cast<const Float8*>(from); }
DDSM_INLINE Float8 load8(const Bf16* from) {
  typedef uint16_t Half8 __attribute__((vector_size(16), aligned(2), may_alias));
  typedef uint32_t Word8 __attribute__((vector_size(32)));
  const Word8 words = __builtin_convertvector(*reinterpret_cast<const Half8*>(from), Word8) << 16;
  return reinterpret_cast<const Float8&>(words);
}

// to[j * to_stride + i] = from[i * from_stride + j] for an 8 x 8 block.
template <class TW>
DDSM_INLINE void transpose8(const TW* from, int64_t from_stride, float* to, int64_t to_stride) {
  Float8 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = load8(from + i * from_stride);
  const Int8 low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = __builtin_shuffle(a[2 * i], a[2 * i + 1], low);
    b[2 * i + 1] = __builtin_shuffle(a[2 * i], a[2 * i + 1], high);
  }
  const Int8 pair_low = {0, 1, 8, 9, 4, 5, 12, 13}, pair_high = {2, 3, 10, 11, 6, 7, 14, 15};
  for (int half = 0; half < 2; ++half) {
    Float8* in = b + 4 * half;
    a[4 * half + 0] = __builtin_shuffle(in[0], in[2], pair_low);
    a[4 * half + 1] = __builtin_shuffle(in[0], in[2], pair_high);
    a[4 * half + 2] = __builtin_shuffle(in[1], in[3], pair_low);
    a[4 * half + 3] = __builtin_shuffle(in[1], in[3], pair_high);
  }
  const Int8 quad_low = {0, 1, 2, 3, 8, 9, 10, 11}, quad_high = {4, 5, 6, 7, 12, 13, 14, 15};
  for (int j = 0; j < 4; ++j) {
    *reinterpret_cast<Float8*>(to + j * to_stride) = __builtin_shuffle(a[j], a[j + 4], quad_low);
    *reinterpret_cast<Float8*>(to + (j + 4) * to_stride) =
        __builtin_shuffle(a[j], a[j + 4], quad_high);
  }
}
#endif

// to[j * to_stride + lane] = from[lane * lane_stride + j] for j < run and lane < lanes; lanes up
// to `width` become zero.
template <class T, class TW>
static void transpose_run(const TW* from, int64_t lane_stride, int64_t lanes, int64_t run, T* to,
                          int64_t to_stride, int64_t width) {
  int64_t j = 0;
  if (run == 1 && lane_stride == 1) {
    for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = to_compute(from[lane]);
    j = 1;
  }
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    const int64_t lanes8 = lanes / 8 * 8;
    for (; j + 8 <= run; j += 8) {
      for (int64_t lane = 0; lane < lanes8; lane += 8) {
        transpose8(from + lane * lane_stride + j, lane_stride, to + j * to_stride + lane,
                   to_stride);
      }
      for (int64_t lane = lanes8; lane < lanes; ++lane) {
        for (int64_t q = j; q < j + 8; ++q) {
          to[q * to_stride + lane] = to_compute(from[lane * lane_stride + q]);
        }
      }
    }
  }
#endif
  for (; j < run; ++j) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      to[j * to_stride + lane] = to_compute(from[lane * lane_stride + j]);
    }
  }
  if (lanes < width) {
    for (j = 0; j < run; ++j) {
      for (int64_t lane = lanes; lane < width; ++lane) to[j * to_stride + lane] = T(0);
    }
  }
}

// staged[(d * taps + r * k + s) * kPanel + lane] = from[lane, d, r, s] for d < depth, through the
// longest unit-stride runs that the weight's layout has; lanes up to `width` become zero.
template <class T, class TW>
static void stage_lanes(const GemmWeight& weight, const TW* from, int64_t lanes, int64_t depth,
                        int64_t width, T* staged) {
  constexpr int64_t kPanel = kPanelLanes<T>;
  const int64_t k = weight.kernel, taps = weight.taps;
  const bool taps_adjacent = taps == 1 || (weight.s_stride == 1 && weight.r_stride == k);
  if (taps_adjacent && weight.depth_stride == taps) {  // contiguous [lane][depth][r][s]
    transpose_run(from, weight.lane_stride, lanes, depth * taps, staged, kPanel, width);
  } else if (taps_adjacent && taps > 1) {  // the same, read the other way round
    for (int64_t d = 0; d < depth; ++d) {
      transpose_run(from + d * weight.depth_stride, weight.lane_stride, lanes, taps,
                    staged + d * taps * kPanel, kPanel, width);
    }
  } else {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const TW* at = from + tap / k * weight.r_stride + tap % k * weight.s_stride;
      if (weight.depth_stride == 1) {  // channels_last
        transpose_run(at, weight.lane_stride, lanes, depth, staged + tap * kPanel, taps * kPanel,
                      width);
        continue;
      }
      for (int64_t d = 0; d < depth; ++d) {
        transpose_run(at + d * weight.depth_stride, weight.lane_stride, lanes, 1,
                      staged + (d * taps + tap) * kPanel, kPanel, width);
      }
    }
  }
}

// staged[(d * taps + r * k + s) * kPanel + ..] = weights of a panel's row of depth first + d, for
// d < depth.
template <class T, class TW>
static void stage_weights(const GemmArgs& problem, const PanelPlace& place, int64_t first,
                          int64_t depth, T* staged) {
  const GemmWeight& weight = problem.weight;
  const TW* from = static_cast<const TW*>(weight.data) + place.part * weight.part_stride +
                   place.lane * weight.lane_stride + first * weight.depth_stride;
  const int64_t width = panel_width<T>(problem);
  stage_lanes(weight, from, place.lanes, depth, width, staged);
  if (!is_glu(problem)) return;
  stage_lanes(weight, from + weight.part_stride, place.lanes, depth, width, staged + width);
}

// The panel at a place: panel[source][tap][channel][kPanel].
template <class T, class TW>
static void pack_panel(const GemmArgs& problem, const GemmPhase& phase, const PanelPlace& place,
                       T* staged, T* panel) {
  constexpr int64_t kPanel = kPanelLanes<T>;
  typedef typename Lanes<T>::InMemory Vector;
  const int64_t raw_taps = problem.weight.taps;
  for (int s = 0; s < problem.n_sources; ++s) {
    const GemmSource& source = problem.sources[s];
    for (int64_t c0 = 0; c0 < source.channels; c0 += kPackDepth) {
      const int64_t depth = smaller(kPackDepth, source.channels - c0);
      const int64_t first = source.depth_offset + c0;
      if (raw_taps == 1 && phase.n_taps == 1) {
        stage_weights<T, TW>(problem, place, first, depth, panel + c0 * kPanel);
        continue;
      }
      stage_weights<T, TW>(problem, place, first, depth, staged);
      for (int t = 0; t < phase.n_taps; ++t) {
        const GemmTap& tap = phase.taps[t];
        T* to = panel + (t * source.channels + c0) * kPanel;
        for (int64_t d = 0; d < depth; ++d, to += kPanel) {
          const T* row = staged + d * raw_taps * kPanel;
          for (int v = 0; v < kPanelVectors; ++v) {
            const int64_t at = v * Lanes<T>::kCount;
            Vector sum = *reinterpret_cast<const Vector*>(row + tap.raw[0] * kPanel + at);
            for (int32_t q = 1; q < tap.n_raw; ++q) {
              sum += *reinterpret_cast<const Vector*>(row + tap.raw[q] * kPanel + at);
            }
            *reinterpret_cast<Vector*>(to + at) = sum;
          }
        }
      }
    }
    panel += phase.n_taps * source.channels * kPanel;
  }
}

}  // namespace ddsm::DDSM_ISA
