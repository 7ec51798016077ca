// Gradient of the weights: weight[lane, depth, tap] += sum over pixels of y[pixel, lane] *
// source[pixel + tap, depth], one rectangle of lanes x depth (see gemm.h).
#include <cstring>

#include "gemm_tile.h"

namespace ddsm::DDSM_ISA {
namespace {

constexpr int64_t kMostPixels = 256;        // pixels summed between two visits to the partial sums
constexpr int64_t kLaneBytes = 192 << 10;   // packed y at a time (shares a 512 KB L2)
constexpr int64_t kPartialBytes = 384 << 10;  // partial sums kept at a time

// partial[i][v] += sum over pixels of lanes[pixel][i] * channels[pixel][v]
template <class T, int kVectors>
__attribute__((noinline)) void accumulate_tile(const T* lanes, const T* channels, int64_t pixels,
                                               T* partial) {
  typedef typename Lanes<T>::InMemory Vector;
  constexpr int kVector = Lanes<T>::kCount, kPanel = kPanelLanes<T>;
  Vector sum[kTileRows][kVectors];
  DDSM_UNROLL
  for (int i = 0; i < kTileRows; ++i) {
    DDSM_UNROLL
    for (int v = 0; v < kVectors; ++v) sum[i][v] = Vector{};
  }
  for (int64_t p = 0; p < pixels; ++p, lanes += kTileRows, channels += kPanel) {
    Vector b[kVectors];
    DDSM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      b[v] = *reinterpret_cast<const Vector*>(channels + v * kVector);
    }
    DDSM_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      DDSM_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[i][v] += lanes[i] * b[v];
    }
  }
  DDSM_UNROLL
  for (int i = 0; i < kTileRows; ++i) {
    DDSM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      *reinterpret_cast<Vector*>(partial + i * kPanel + v * kVector) += sum[i][v];
    }
  }
}

// Which source and channels a panel of depth holds.
struct DepthPanel {
  int source;
  int64_t channel, channels;
};

template <class T>
DepthPanel depth_panel(const GemmArgs& problem, int64_t panel) {
  constexpr int64_t kPanel = kPanelLanes<T>;
  const int64_t in_first = ceil_div(problem.sources[0].channels, kPanel);
  const int source = panel < in_first ? 0 : 1;
  const int64_t channel = (panel - (source ? in_first : 0)) * kPanel;
  return {source, channel, smaller(kPanel, problem.sources[source].channels - channel)};
}

template <class T>
struct Scratch {
  int64_t pixels, panels, lane_tiles;  // at a time; at a time; of the range
  T *zero_row, *lanes, *channels, *partial;
  const T** table;
  T** y;
};

template <class T>
Scratch<T> carve(const GemmArgs& problem, const GemmPhase& phase, const GemmRange& range,
                 Arena& arena) {
  constexpr int64_t kPanel = kPanelLanes<T>;
  Scratch<T> s;
  s.lane_tiles = range.first_end - range.first_begin;
  const int64_t lanes = s.lane_tiles * kTileRows;
  const int64_t element = sizeof(T);
  // All lanes count, not this range's: the order of summation must not depend on the threads.
  const int64_t all_lanes = round_up(problem.lanes, kTileRows);
  s.pixels = larger(32, smaller(kMostPixels, kLaneBytes / (all_lanes * element)));
  const int64_t panel_bytes = phase.n_taps * lanes * kPanel * element;
  s.panels = larger(1, smaller(range.second_end - range.second_begin, kPartialBytes / panel_bytes));
  s.zero_row = arena.take<T>(most_channels(problem));
  s.lanes = arena.take<T>(s.pixels * lanes);
  s.channels = arena.take<T>(s.pixels * kPanel);
  s.partial = arena.take<T>(s.panels * phase.n_taps * lanes * kPanel);
  s.table = arena.take<const T*>(problem.n_sources * phase.n_taps * s.pixels);
  s.y = arena.take<T*>(s.pixels);
  return s;
}

// to[tile][pixel][kTileRows] = lanes of y; lanes beyond the problem's become zero.
template <class T>
void pack_lanes(const GemmArgs& problem, const GemmRange& range, const T* const* y,
                int64_t pixels, T* to) {
  for (int64_t tile = range.first_begin; tile < range.first_end; ++tile) {
    const int64_t lane = tile * kTileRows;
    const int64_t valid = smaller(kTileRows, problem.lanes - lane);
    for (int64_t p = 0; p < pixels; ++p, to += kTileRows) {
      if (valid == kTileRows) {
        std::memcpy(to, y[p] + lane, sizeof(T) * kTileRows);
        continue;
      }
      for (int64_t i = 0; i < kTileRows; ++i) to[i] = i < valid ? y[p][lane + i] : T(0);
    }
  }
}

// to[pixel][kPanel] = channels of the source rows; channels beyond the source's become zero.
template <class T>
void pack_channels(const T* const* rows, const DepthPanel& panel, int64_t pixels, T* to) {
  constexpr int64_t kPanel = kPanelLanes<T>;
  for (int64_t p = 0; p < pixels; ++p, to += kPanel) {
    const T* from = rows[p] + panel.channel;
    if (panel.channels == kPanel) {
      std::memcpy(to, from, sizeof(T) * kPanel);
      continue;
    }
    for (int64_t v = 0; v < kPanel; ++v) to[v] = v < panel.channels ? from[v] : T(0);
  }
}

// weight[lane, depth, taps] += the partial sums [tap][lane][kPanel] of one panel.
template <class T, class TW>
void add_panel(const GemmArgs& problem, const GemmPhase& phase, const GemmRange& range,
               const DepthPanel& panel, const T* partial) {
  constexpr int64_t kPanel = kPanelLanes<T>;
  const GemmWeight& weight = problem.weight;
  const int64_t first_lane = range.first_begin * kTileRows;
  const int64_t lanes = (range.first_end - range.first_begin) * kTileRows;
  const int64_t valid = smaller(lanes, problem.lanes - first_lane);
  const int64_t depth = problem.sources[panel.source].depth_offset + panel.channel;
  for (int64_t lane = 0; lane < valid; ++lane) {
    TW* row = static_cast<TW*>(weight.data) + (first_lane + lane) * weight.lane_stride +
              depth * weight.depth_stride;
    for (int t = 0; t < phase.n_taps; ++t) {
      const GemmTap& tap = phase.taps[t];
      const T* sums = partial + (t * lanes + lane) * kPanel;
      for (int32_t q = 0; q < tap.n_raw; ++q) {
        TW* to = row + tap.raw[q] / weight.kernel * weight.r_stride +
                 tap.raw[q] % weight.kernel * weight.s_stride;
        for (int64_t c = 0; c < panel.channels; ++c, to += weight.depth_stride) {
          from_compute(to_compute(*to) + sums[c], to);
        }
      }
    }
  }
}

template <class T, class TW>
void accumulate_range(const GemmArgs& problem, const GemmPhase& phase, const GemmRange& range,
                      void* workspace) {
  constexpr int64_t kPanel = kPanelLanes<T>;
  Arena arena{static_cast<char*>(workspace), 0};
  Scratch<T> scratch = carve<T>(problem, phase, range, arena);
  const int64_t zero_count = most_channels(problem);
  for (int64_t c = 0; c < zero_count; ++c) scratch.zero_row[c] = T(0);
  const int64_t tap_size = scratch.lane_tiles * kTileRows * kPanel;
  const int64_t panel_size = phase.n_taps * tap_size;
  const int64_t all_pixels = problem.images * phase.rows * phase.cols;
  for (int64_t group = range.second_begin; group < range.second_end; group += scratch.panels) {
    const int64_t panels = smaller(scratch.panels, range.second_end - group);
    std::memset(scratch.partial, 0, sizeof(T) * panels * panel_size);
    for (int64_t first = 0; first < all_pixels; first += scratch.pixels) {
      const int64_t pixels = smaller(scratch.pixels, all_pixels - first);
      build_table(problem, phase, first, pixels, scratch.zero_row, scratch.table, scratch.pixels);
      locate_pixels(problem, phase, first, pixels, scratch.y);
      pack_lanes(problem, range, scratch.y, pixels, scratch.lanes);
      for (int64_t q = 0; q < panels; ++q) {
        const DepthPanel panel = depth_panel<T>(problem, group + q);
        for (int t = 0; t < phase.n_taps; ++t) {
          pack_channels(scratch.table + (panel.source * phase.n_taps + t) * scratch.pixels, panel,
                        pixels, scratch.channels);
          T* partial = scratch.partial + q * panel_size + t * tap_size;
          for (int64_t tile = 0; tile < scratch.lane_tiles; ++tile) {
            const T* lanes = scratch.lanes + tile * pixels * kTileRows;
            T* sums = partial + tile * kTileRows * kPanel;
            if (panel.channels <= Lanes<T>::kCount) {
              accumulate_tile<T, 1>(lanes, scratch.channels, pixels, sums);
            } else {
              accumulate_tile<T, kPanelVectors>(lanes, scratch.channels, pixels, sums);
            }
          }
        }
      }
    }
    for (int64_t q = 0; q < panels; ++q) {
      add_panel<T, TW>(problem, phase, range, depth_panel<T>(problem, group + q),
                       scratch.partial + q * panel_size);
    }
  }
}

// One row a pixel is all the work there is, so memory is the limit and sums in double cost nothing.
template <class T, class TW>
void accumulate_bias_range(const GemmArgs& problem, const GemmPhase& phase, int64_t first_lane,
                           int64_t lanes, TW* bias) {
  constexpr int64_t kPanel = kPanelLanes<T>;
  const int64_t all_pixels = problem.images * phase.rows * phase.cols;
  T* y[kMostPixels];
  for (int64_t lane = first_lane; lane < first_lane + lanes; lane += kPanel) {
    const int64_t valid = smaller(kPanel, first_lane + lanes - lane);
    double total[kPanel] = {};
    for (int64_t first = 0; first < all_pixels; first += kMostPixels) {
      const int64_t pixels = smaller(kMostPixels, all_pixels - first);
      locate_pixels(problem, phase, first, pixels, y);
      for (int64_t p = 0; p < pixels; ++p) {
        const T* row = y[p] + lane;
        if (valid == kPanel) {
          for (int64_t v = 0; v < kPanel; ++v) total[v] += row[v];
        } else {
          for (int64_t v = 0; v < valid; ++v) total[v] += row[v];
        }
      }
    }
    for (int64_t v = 0; v < valid; ++v) {
      from_compute(static_cast<T>(to_compute(bias[lane + v]) + total[v]), bias + lane + v);
    }
  }
}

}  // namespace

size_t gemm_accumulate_workspace(const GemmArgs& problem, const GemmPhase& phase,
                                 const GemmRange& range) {
  Arena arena{nullptr, 0};
  if (problem.compute == DType::kFloat64) {
    carve<double>(problem, phase, range, arena);
  } else {
    carve<float>(problem, phase, range, arena);
  }
  return arena.used;
}

void gemm_accumulate_range(const GemmArgs& problem, const GemmPhase& phase,
                           const GemmRange& range, void* workspace) {
  if (problem.compute == DType::kFloat64) {
    accumulate_range<double, double>(problem, phase, range, workspace);
  } else if (problem.weight_dtype == DType::kBFloat16) {
    accumulate_range<float, Bf16>(problem, phase, range, workspace);
  } else {
    accumulate_range<float, float>(problem, phase, range, workspace);
  }
}

void gemm_accumulate_bias_range(const GemmArgs& problem, const GemmPhase& phase,
                                int64_t first_lane, int64_t lanes, void* bias) {
  if (problem.compute == DType::kFloat64) {
    accumulate_bias_range<double>(problem, phase, first_lane, lanes, static_cast<double*>(bias));
  } else if (problem.weight_dtype == DType::kBFloat16) {
    accumulate_bias_range<float>(problem, phase, first_lane, lanes, static_cast<Bf16*>(bias));
  } else {
    accumulate_bias_range<float>(problem, phase, first_lane, lanes, static_cast<float*>(bias));
  }
}

}  // namespace ddsm::DDSM_ISA
