// y = bias + taps of the sources x weights, one rectangle of pixels x panels (see gemm.h).
#include "gelu.h"
#include "gemm_pack.h"
#include "gemm_tile.h"

namespace ddsm::DDSM_ISA {
namespace {

// Depth multiplied between two visits to the partial sums: a panel piece of 384 x 64 bytes stays
// in a 32 KB L1. Sums of at most this many products are also what keeps rounding errors small.
// On a Zen 3 with 512 KB L2, 384 and 64 KB were 5-10 % faster than 256 and 160 KB.
constexpr int64_t kDepthBlock = kVectorBytes == 64 ? 256 : 384;
constexpr int64_t kPanelBytes = 256 << 10;  // packed panels kept at a time (half of a 512 KB L2)
constexpr int64_t kPixelBytes = 64 << 10;   // input pixels walked at a time
constexpr int64_t kMostPixels = 384;

// A stretch of depth within one tap.
struct Segment {
  int64_t table_row;  // source * n_taps + tap
  int64_t channel, length;
  int64_t depth;  // where it begins in the panel
  int64_t next;   // where the next one begins: behind the panel, that of the next panel
};

// sum[i] += row i of the segment x its panel rows.
template <int kRows, class Shape, class T>
DDSM_INLINE void multiply_segment(const T* const* rows, const Segment& segment, const T* panel,
                                  PanelSum<T, Shape> (&sum)[kRows]) {
  panel += segment.depth * kPanelRow<T>;
  // A width's segments lie apart, and the hardware fetches nothing ahead across the gaps.
  const int64_t gap = (segment.next - segment.depth - segment.length) * kPanelRow<T>;
  const T* fetched = segment.length < kRowsAhead ? panel + gap : panel;
  const T* a[kRows];  // ends of the rows: counting up to zero saves the register of a bound
  DDSM_UNROLL
  for (int i = 0; i < kRows; ++i) a[i] = rows[i] + segment.channel + segment.length;
  for (int64_t c = -segment.length; c != 0; ++c, panel += kPanelRow<T>) {
    fetched += c == -kRowsAhead ? gap : 0;
    PanelSum<T, Shape> b;
    b.read(panel);
    prefetch_panel(fetched);
    fetched += kPanelRow<T>;
    DDSM_UNROLL
    for (int i = 0; i < kRows; ++i) sum[i].add_product(a[i][c], b);
  }
}

#if defined(__AVX512BF16__)
typedef uint32_t Pair __attribute__((aligned(2), may_alias));  // two neighbours in memory

// sum[i] += pair(i) x one panel row, of which the bits outside `mask` are not ours to read.
template <int kRows, class Shape, class PairOf>
DDSM_INLINE void multiply_pair(const PairOf& pair, const Bf16* panel, uint32_t mask,
                               PanelSum<float, Shape> (&sum)[kRows]) {
  constexpr int kVectors = Shape::kVectors;
  __m512bh b[kVectors];
  DDSM_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const __m512i row = _mm512_loadu_si512(panel + v * (kPanelRow<Bf16> / kPanelVectors));
    b[v] = (__m512bh)_mm512_and_si512(row, _mm512_set1_epi32(static_cast<int32_t>(mask)));
  }
  DDSM_UNROLL
  for (int i = 0; i < kRows; ++i) {
    const __m512bh a = (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(pair(i)));
    DDSM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      sum[i].whole[v] = (Vec<float>)_mm512_dpbf16_ps((__m512)sum[i].whole[v], a, b[v]);
    }
  }
}

// Pairs of depth; where the segment begins or ends inside a pair, the other half is left out.
template <int kRows, class Shape>
DDSM_INLINE void multiply_segment(const Bf16* const* rows, const Segment& segment,
                                  const Bf16* panel, PanelSum<float, Shape> (&sum)[kRows]) {
  panel += segment.depth / 2 * kPanelRow<Bf16>;
  const int64_t head = segment.depth % 2, pairs = (segment.length - head) / 2;
  if (head) {
    const auto first = [&](int i) { return uint32_t{rows[i][segment.channel].bits} << 16; };
    multiply_pair(first, panel, 0xffff0000u, sum);
    panel += kPanelRow<Bf16>;
  }
  const Pair* a[kRows];
  DDSM_UNROLL
  for (int i = 0; i < kRows; ++i) {
    a[i] = reinterpret_cast<const Pair*>(rows[i] + segment.channel + head) + pairs;
  }
  for (int64_t p = -pairs; p != 0; ++p, panel += kPanelRow<Bf16>) {
    prefetch_panel(panel);
    multiply_pair([&](int i) { return a[i][p]; }, panel, 0xffffffffu, sum);
  }
  if (head + 2 * pairs < segment.length) {
    const auto last = [&](int i) {
      return uint32_t{rows[i][segment.channel + segment.length - 1].bits};
    };
    multiply_pair(last, panel, 0x0000ffffu, sum);
  }
}
#endif

template <class T, class TY>
struct TileCall {
  const T* const* table;  // column of the tile's first pixel
  int64_t table_stride;
  const Segment* segments;
  int64_t n_segments;
  const T* panel;
  Compute<T>* partial;  // [rows][kPanel] sums of earlier depth blocks
  bool first, last;
  const Compute<T>* const* bias;  // [rows] of [kPanel]
  TY* const* y;          // [rows]
  int64_t column, lanes;  // of y
  const TY* residual;     // like y_begin; null: none
  Compute<T> gain;
  const TY* y_begin;
};

#if defined(__AVX512F__)
#define DDSM_STORE_LANES DDSM_INLINE
#else
#define DDSM_STORE_LANES __attribute__((noinline))
#endif

// The first `valid` of a vector, plus as many of the residual (null: none), times gain. Inlined
// only where masks make it short: each unrolled row of a tile holds a copy.
template <class C, class TY>
DDSM_STORE_LANES void store_lanes(Vec<C> sum, int64_t valid, const TY* residual, C gain, TY* to) {
  if (residual) sum += load_first(residual, valid);
  store_first(to, sum * gain, valid);
}

template <class T, class TY, int kRows, class Shape>
__attribute__((noinline)) void multiply_tile(const TileCall<T, TY>& call) {
  using C = Compute<T>;
  constexpr int kVector = Lanes<C>::kCount, kPanel = kPanelLanes<T>;
  PanelSum<C, Shape> sum[kRows];
  DDSM_UNROLL
  for (int i = 0; i < kRows; ++i) sum[i].clear();
  for (int64_t q = 0; q < call.n_segments; ++q) {
    const Segment& segment = call.segments[q];
    multiply_segment(call.table + segment.table_row * call.table_stride, segment, call.panel, sum);
  }
  PanelSum<C, Shape> more;
  if (!call.first) {
    DDSM_UNROLL
    for (int i = 0; i < kRows; ++i) {
      more.read(call.partial + i * kPanel);
      sum[i].add(more);
    }
  }
  if (!call.last) {
    DDSM_UNROLL
    for (int i = 0; i < kRows; ++i) sum[i].write(call.partial + i * kPanel);
    return;
  }
  DDSM_UNROLL
  for (int i = 0; i < kRows; ++i) {
    more.read(call.bias[i]);
    sum[i].add(more);
  }
  DDSM_UNROLL
  for (int i = 0; i < kRows; ++i) {
    TY* to = call.y[i] + call.column;
    const TY* residual = call.residual ? call.residual + (to - call.y_begin) : nullptr;
    DDSM_UNROLL
    for (int v = 0; v < Shape::kVectors; ++v) {
      if ((v + 1) * kVector <= call.lanes) {
        Vec<C> value = sum[i].whole[v];
        if (residual) value += load(residual + v * kVector);
        store(to + v * kVector, value * call.gain);
        continue;
      }
      store_lanes<C>(sum[i].whole[v], smaller(kVector, call.lanes - v * kVector),
                     residual ? residual + v * kVector : nullptr, call.gain, to + v * kVector);
    }
    if constexpr (Shape::kHasHalf) {
      constexpr int kFirst = Shape::kVectors * kVector;
      store_lanes<C>(widened(sum[i].half), call.lanes - kFirst,
                     residual ? residual + kFirst : nullptr, call.gain, to + kFirst);
    }
  }
}

// `rows` pixels from call's tile on, in tiles of kTileRows, then of two thirds as many, as images
// of 4^n pixels leave over 4 of 6 or 12, then of half as many, and so on.
template <class T, class TY, class Shape, int kRows = kTileRows>
void multiply_rows(TileCall<T, TY> call, int64_t rows) {
  for (; rows >= kRows; rows -= kRows) {
    multiply_tile<T, TY, kRows, Shape>(call);
    call.table += kRows;
    call.partial += kRows * kPanelLanes<T>;
    call.bias += kRows;
    call.y += kRows;
  }
  constexpr int kFewer = kRows == kTileRows ? kTileRows * 2 / 3 : kRows / 2;
  if constexpr (kRows > 1) multiply_rows<T, TY, Shape, kFewer>(call, rows);
}

// Everything a chunk of work needs beside its problem.
template <class T, class TY>
struct Scratch {
  int64_t depth, pixels, panels;  // of a panel; at a time; at a time
  T *zero_row, *staged, *packed;
  Compute<T>* partial;
  Compute<T>* biases;  // [images at a time][kPanel]
  const T** table;
  const Compute<T>** bias_rows;
  TY** y;
  Segment* segments;
  int64_t* block_begin;  // first segment of each depth block
  int64_t n_blocks;
};

template <class T, class TY>
Scratch<T, TY> carve(const GemmArgs& problem, const GemmPhase& phase, Arena& arena) {
  constexpr int64_t kPanel = kPanelLanes<T>;
  const int64_t channels = total_channels(problem);
  const int64_t rows = phase.n_taps * problem.n_sources;
  Scratch<T, TY> s;
  s.depth = phase.n_taps * channels;
  const int64_t wanted = kPixelBytes / (channels * static_cast<int64_t>(sizeof(T)));
  s.pixels = larger(4, smaller(wanted, kMostPixels) / kTileRows) * kTileRows;
  const int64_t panel_bytes = larger(1, s.depth) * kPanel * static_cast<int64_t>(sizeof(T));
  s.panels = smaller(larger(1, kPanelBytes / panel_bytes),
                     gemm_panels(problem, kPanel));
  const int64_t block = problem.longest_sum > 0 ? problem.longest_sum : kDepthBlock * kDepthStep<T>;
  s.n_blocks = larger(1, ceil_div(s.depth, block));
  s.zero_row = arena.take<T>(most_channels(problem));
  s.staged = arena.take<T>(kPackDepth * problem.weight.taps * kPanel);
  s.packed = arena.take<T>(phase.panels ? 0 : s.panels * s.depth * kPanel);
  s.partial = arena.take<Compute<T>>(s.pixels * kPanel);
  const int64_t images = ceil_div(s.pixels, larger(1, phase.rows * phase.cols)) + 1;
  s.biases = arena.take<Compute<T>>((problem.shift ? images : 1) * kPanel);
  s.table = arena.take<const T*>(rows * s.pixels);
  s.bias_rows = arena.take<const Compute<T>*>(s.pixels);
  s.y = arena.take<TY*>(s.pixels);
  s.segments = arena.take<Segment>(rows + s.n_blocks);
  s.block_begin = arena.take<int64_t>(s.n_blocks + 1);
  return s;
}

// Cuts the depth into n_blocks even blocks (of whole panel rows), at tap boundaries where they fall
// inside one.
template <class T, class TY>
void cut_depth(const GemmArgs& problem, const GemmPhase& phase, Scratch<T, TY>& scratch) {
  constexpr int64_t kStep = kDepthStep<T>;
  const int64_t block = round_up(ceil_div(scratch.depth, scratch.n_blocks), kStep);
  const int64_t tap_depth = round_up(problem.depth_max, kStep);
  int64_t n_segments = 0, blocks = 0, room = 0, depth = 0;
  for (int s = 0; s < problem.n_sources; ++s) {
    for (int t = 0; t < phase.n_taps; ++t) {
      for (int64_t c = 0; c < problem.sources[s].channels;) {
        if (room == 0) {
          scratch.block_begin[blocks++] = n_segments;
          room = block;
        }
        const int64_t length = smaller(room, problem.sources[s].channels - c);
        const int64_t begin =
            phase.panels ? t * tap_depth + problem.sources[s].depth_offset + c : depth;
        scratch.segments[n_segments++] = {s * phase.n_taps + t, c, length, begin, 0};
        c += length;
        depth += length;
        room -= length;
      }
    }
  }
  if (blocks == 0) scratch.block_begin[blocks++] = 0;
  scratch.n_blocks = blocks;
  scratch.block_begin[blocks] = n_segments;
  const int64_t panel = phase.panels ? phase.n_taps * tap_depth : depth;
  for (int64_t i = 0; i < n_segments; ++i) {
    Segment& segment = scratch.segments[i];
    segment.next = i + 1 < n_segments ? scratch.segments[i + 1].depth
                                      : panel + scratch.segments[0].depth;
  }
}

template <class T>
const T* packed_panel(const GemmArgs& problem, const GemmPhase& phase, const PanelPlace& place) {
  const int64_t width = panel_width<T>(problem);
  const int64_t index = place.part * ceil_div(problem.lanes_max, width) + place.lane / width;
  return static_cast<const T*>(phase.panels) +
         index * phase.n_taps * ceil_div(problem.depth_max, kDepthStep<T>) * kPanelRow<T>;
}

// scratch.bias_rows[q] = what pixel first + q of the phase gets added in the lanes of the panel.
template <class T, class TW, class TY>
void gather_biases(const GemmArgs& problem, const GemmPhase& phase, const PanelPlace& place,
                   int64_t first, int64_t count, Scratch<T, TY>& scratch) {
  constexpr int64_t kPanel = kPanelLanes<T>;
  const int64_t width = panel_width<T>(problem);
  const TW* bias = static_cast<const TW*>(problem.bias);
  if (bias) bias += place.part * problem.lanes_max + place.lane;
  const int64_t per_image = phase.rows * phase.cols, first_image = first / per_image;
  const int64_t images = problem.shift ? (first + count - 1) / per_image - first_image + 1 : 1;
  for (int64_t n = 0; n < images; ++n) {
    const float* more = problem.shift
                            ? problem.shift + (first_image + n) * problem.lanes + place.lane
                            : nullptr;
    Compute<T>* to = scratch.biases + n * kPanel;
    for (int64_t v = 0; v < kPanel; ++v) {
      to[v] = bias && v < place.lanes ? to_compute(bias[v]) : Compute<T>(0);
      if (more && v < place.lanes) to[v] += more[v];
    }
    for (int64_t v = width; v < kPanel; ++v) {
      if (bias && v - width < place.lanes) to[v] = to_compute(bias[problem.lanes_max + v - width]);
    }
  }
  for (int64_t q = 0; q < count; ++q) {
    const int64_t n = images > 1 ? (first + q) / per_image - first_image : 0;
    scratch.bias_rows[q] = scratch.biases + n * kPanel;
  }
}

// y of a panel's lanes at the pixels [first, first + count) of the phase, whose products are in
// scratch.partial. By a few pixels of one image: each is a chain of dependent operations.
template <class T, class TY>
__attribute__((noinline)) void activate_panel(const GemmArgs& problem, const GemmPhase& phase,
                                              const PanelPlace& place, int64_t first, int64_t count,
                                              const Scratch<T, TY>& scratch) {
  using C = Compute<T>;
  constexpr int64_t kVector = Lanes<C>::kCount, kPanel = kPanelLanes<T>, kPixels = 4;
  const bool glu = is_glu(problem);
  const int64_t per_image = phase.rows * phase.cols;
  const int64_t column = place.part * problem.lanes + place.lane;
  const int64_t columns = (glu ? 1 : problem.parts) * problem.lanes;
  const auto sum = [&](int64_t pixel, int64_t lane) {
    return load(scratch.partial + pixel * kPanel + lane) + load(scratch.bias_rows[pixel] + lane);
  };
  for (int64_t q = 0, run; q < count; q += run) {
    const int64_t image = (first + q) / per_image;
    run = smaller(smaller(kPixels, count - q), (image + 1) * per_image - first - q);
    for (int64_t lane = 0; lane < place.lanes; lane += kVector) {
      const int64_t valid = smaller(kVector, place.lanes - lane), at = column + lane;
      const auto read = [&](const auto* p) {
        return valid == kVector ? load(p) : load_first(p, valid);
      };
      Vec<C> value[kPixels], half[kPixels] = {};
      for (int64_t i = 0; i < kPixels; ++i) {
        const int64_t pixel = q + smaller(i, run - 1);
        value[i] = sum(pixel, lane);
        if (glu) half[i] = sum(pixel, kVector);
      }
      activate(problem.activation, value, half);
      const C* gate = static_cast<const C*>(problem.gate);
      const Vec<C> factor = gate ? read(gate + image * columns + at) : broadcast(C(1));
      for (int64_t i = 0; i < run; ++i) {
        TY* to = scratch.y[q + i] + at;
        value[i] *= factor;
        if (problem.residual) {
          value[i] += read(static_cast<const TY*>(problem.residual) +
                           (to - static_cast<const TY*>(problem.y)));
        }
        value[i] *= static_cast<C>(problem.gain);
        valid == kVector ? store(to, value[i]) : store_first(to, value[i], valid);
      }
    }
  }
}

// All depth blocks of one panel over the `count` pixels from `first` on, which are in the table.
template <class T, class TY>
void multiply_panel(const GemmArgs& problem, const GemmPhase& phase, const T* panel,
                    const PanelPlace& place, int64_t first, int64_t count,
                    const Scratch<T, TY>& scratch) {
  const bool plain = problem.activation == Activation::kNone && !problem.gate;
  for (int64_t block = 0; block < scratch.n_blocks; ++block) {
    const int64_t begin = scratch.block_begin[block], end = scratch.block_begin[block + 1];
    TileCall<T, TY> call;
    call.table = scratch.table;
    call.table_stride = scratch.pixels;
    call.segments = scratch.segments + begin;
    call.n_segments = end - begin;
    call.panel = panel;
    call.partial = scratch.partial;
    call.first = block == 0;
    call.last = plain && block + 1 == scratch.n_blocks;
    call.bias = scratch.bias_rows;
    call.y = scratch.y;
    call.column = place.part * problem.lanes + place.lane;
    call.lanes = place.lanes;
    call.residual = static_cast<const TY*>(problem.residual);
    call.gain = static_cast<Compute<T>>(problem.gain);
    call.y_begin = static_cast<const TY*>(problem.y);
    with_panel_shape<T>(is_glu(problem) ? kPanelLanes<T> : place.lanes, [&](auto shape) {
      multiply_rows<T, TY, decltype(shape)>(call, count);
    });
  }
  if (!plain) activate_panel(problem, phase, place, first, count, scratch);
}

template <class T, class TW, class TY>
void multiply_range(const GemmArgs& problem, const GemmPhase& phase, const GemmRange& range,
                    void* workspace) {
  constexpr int64_t kPanel = kPanelLanes<T>;
  Arena arena{static_cast<char*>(workspace), 0};
  Scratch<T, TY> scratch = carve<T, TY>(problem, phase, arena);
  cut_depth(problem, phase, scratch);
  const int64_t zero_count = most_channels(problem);
  for (int64_t c = 0; c < zero_count; ++c) scratch.zero_row[c] = T{};
  for (int64_t group = range.second_begin; group < range.second_end; group += scratch.panels) {
    const int64_t panels = smaller(scratch.panels, range.second_end - group);
    if constexpr (kDepthStep<T> == 1) {
      for (int64_t q = 0; q < panels && !phase.panels; ++q) {
        const PanelPlace place = panel_place<T>(problem, group + q);
        pack_panel<T, TW>(problem, phase, place, scratch.staged,
                          scratch.packed + q * scratch.depth * kPanel);
      }
    }
    for (int64_t p = range.first_begin; p < range.first_end; p += scratch.pixels) {
      const int64_t count = smaller(scratch.pixels, range.first_end - p);
      build_table(problem, phase, p, count, scratch.zero_row, scratch.table, scratch.pixels);
      locate_pixels(problem, phase, p, count, scratch.y);
      for (int64_t q = 0; q < panels; ++q) {
        const PanelPlace place = panel_place<T>(problem, group + q);
        gather_biases<T, TW>(problem, phase, place, p, count, scratch);
        multiply_panel(problem, phase,
                       phase.panels ? packed_panel<T>(problem, phase, place)
                                    : scratch.packed + q * scratch.depth * kPanel,
                       place, p, count, scratch);
      }
    }
  }
}

}  // namespace

GemmTileShape gemm_tile_shape(DType compute) {
  return {kTileRows, compute == DType::kFloat64 ? kPanelLanes<double> : kPanelLanes<float>};
}

size_t gemm_multiply_workspace(const GemmArgs& problem, const GemmPhase& phase) {
  Arena arena{nullptr, 0};
  if (problem.compute == DType::kFloat64) {
    carve<double, double>(problem, phase, arena);
  } else if (problem.compute == DType::kBFloat16) {
    carve<Bf16, Bf16>(problem, phase, arena);
  } else {
    carve<float, float>(problem, phase, arena);
  }
  return arena.used;
}

void gemm_multiply_range(const GemmArgs& problem, const GemmPhase& phase,
                         const GemmRange& range, void* workspace) {
  const bool narrow_weight = problem.weight_dtype == DType::kBFloat16;
  const bool narrow_y = problem.y_dtype == DType::kBFloat16;
  if (problem.compute == DType::kFloat64) {
    multiply_range<double, double, double>(problem, phase, range, workspace);
#if defined(__AVX512BF16__)
  } else if (problem.compute == DType::kBFloat16) {
    multiply_range<Bf16, Bf16, Bf16>(problem, phase, range, workspace);
#endif
  } else if (narrow_weight && narrow_y) {
    multiply_range<float, Bf16, Bf16>(problem, phase, range, workspace);
  } else if (narrow_weight) {
    multiply_range<float, Bf16, float>(problem, phase, range, workspace);
  } else if (narrow_y) {
    multiply_range<float, float, Bf16>(problem, phase, range, workspace);
  } else {
    multiply_range<float, float, float>(problem, phase, range, workspace);
  }
}

}  // namespace ddsm::DDSM_ISA
