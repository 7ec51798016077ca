// Winograd convolution of a range of tile rows and panels (see winograd.h): padded, normalised
// input rows in a ring, transformed tiles, one matrix product a frequency, output transform with
// the fused epilogue.
#include "group_norm_strips.h"
#include "winograd.h"
#include "winograd_input.h"

namespace ddsm::DDSM_ISA {
namespace {

// Depth of one pass over a panel: with its row tile it stays in a 32 KB L1, and sums start afresh.
constexpr int64_t kLine = 16;  // floats of a cache line
// Cache lines of a panel row, and of those a block's share where two blocks of tiles fetch.
constexpr int kRowLines = kPanelLanes<float> < kLine ? 1 : kPanelLanes<float> / kLine;
constexpr int kHalfLines = kRowLines / 2;

constexpr int64_t kDepthBlock = kVectorBytes == 64 ? 224 : 384;

// A stretch of depth: columns [column, column + length) of the tiles meet panel rows from depth on.
struct DepthBlock {
  int64_t column, depth, length;
};

// One panel and stretch of depth for some transformed tiles.
struct PanelCall {
  const float* tiles;
  int64_t tile_stride;
  const float* panel;
  int64_t length;
  bool accumulate;
  float* out;
  int64_t out_stride;
  const float* fetched;  // what the next call reads, or the half of it that this one brings
};

// out[i][lane] (+)= sum over p < length of tiles[i][p] * panel[p][lane], blocks * kRows tiles i.
// kLines: brings so many cache lines of the next panel into the L2 meanwhile, for each row of this
// one; with few tiles its way from memory is meant to overlap with the products (measured on a busy
// Zen 3: 0 to 10 % of a step at batch 1).
template <int kRows, int kVectors, int kLines>
__attribute__((noinline)) void multiply_rows(const PanelCall& call, int64_t blocks) {
  typedef Lanes<float>::InMemory Vector;
  constexpr int kVector = Lanes<float>::kCount, kPanel = kPanelLanes<float>;
  const float* tiles = call.tiles;
  float* out = call.out;
  for (; blocks > 0; --blocks, tiles += kRows * call.tile_stride, out += kRows * call.out_stride) {
    Vector sum[kRows][kVectors];
    const float* a[kRows];  // ends of the rows: counting up to zero saves the register of a bound
    DDSM_UNROLL
    for (int i = 0; i < kRows; ++i) {
      a[i] = tiles + i * call.tile_stride + call.length;
      DDSM_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[i][v] = Vector{};
    }
    const float* panel = call.panel;
    const float* fetched = call.fetched;
    for (int64_t p = -call.length; p != 0; ++p, panel += kPanel) {
      Vector b[kVectors];
      DDSM_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        b[v] = *reinterpret_cast<const Vector*>(panel + v * kVector);
      }
      if constexpr (kLines > 0) {
        prefetch_panel(panel);
        DDSM_UNROLL
        for (int line = 0; line < kLines; ++line, fetched += kLine) {
          __builtin_prefetch(fetched, 0, 2);
        }
      }
      DDSM_UNROLL
      for (int i = 0; i < kRows; ++i) {
        DDSM_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[i][v] += a[i][p] * b[v];
      }
    }
    DDSM_UNROLL
    for (int i = 0; i < kRows; ++i) {
      DDSM_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        Vector* to = reinterpret_cast<Vector*>(out + i * call.out_stride + v * kVector);
        *to = call.accumulate ? *to + sum[i][v] : sum[i][v];
      }
    }
  }
}

// multiply_rows for a row count known only now; call moves on to the tiles behind.
template <int kVectors, int kLines, int kRows = kTileRows>
void multiply_blocks(PanelCall& call, int64_t rows, int64_t blocks) {
  if (rows == kRows) {
    multiply_rows<kRows, kVectors, kLines>(call, blocks);
    call.tiles += rows * blocks * call.tile_stride;
    call.out += rows * blocks * call.out_stride;
  } else if constexpr (kRows > 1) {
    multiply_blocks<kVectors, kLines, kRows - 1>(call, rows, blocks);
  }
}

template <class T>
DDSM_INLINE FloatVec load_window(const T* p, int64_t begin, int64_t end) {
  FloatVec v = {};
  for (int64_t q = begin; q < end; ++q) v[q] = to_compute(p[q]);
  return v;
}

// One problem on one range: T is the element type of sources, residual and y.
template <int kTile, class T>
struct Convolution {
  static constexpr int kAlpha = kTile + 2;
  static constexpr int kFrequencies = kAlpha * kAlpha;
  static constexpr int64_t kVector = Lanes<float>::kCount, kPanel = kPanelLanes<float>;

  const WinogradProblem& problem;
  const WinogradRange& range;
  WinogradInput<kTile, T> input;
  int64_t panels, block_rows, block_tiles;
  int64_t product_stride;  // between frequencies
  int64_t residual_offsets[kTile * kTile];  // of a tile's pixels, from its first one
  float *tiles, *products, *biases;
  DepthBlock* depth_blocks;
  int64_t n_depth_blocks = 0;

  Convolution(const WinogradProblem& p, const WinogradRange& r, Arena& arena)
      : problem(p), range(r), input(p, arena) {
    panels = r.panel_end - r.panel_begin;
    block_rows = rows_at_once(p, r);
    block_tiles = block_rows * input.tiles_across;
    product_stride = odd_stride(block_tiles * panels * kPanel);
    tiles = arena.take<float>(kFrequencies * input.frequency_stride(block_tiles));
    products = arena.take<float>(kFrequencies * product_stride);
    biases = arena.take<float>(panels * kPanel);
    depth_blocks = arena.take<DepthBlock>(2 + input.channels / kDepthBlock + 2);
    for (int64_t i = 0; i < kTile * kTile; ++i) {
      residual_offsets[i] = residual_pixel(i / kTile, i % kTile) * p.lanes;
    }
  }

  // The residual's pixel below row i, column j of y: rows of all images count on.
  int64_t residual_pixel(int64_t i, int64_t j) const {
    const int64_t scale = problem.residual_scale;
    return i / scale * (problem.width / scale) + j / scale;
  }

  // Whole tile rows of about kWinogradTiles tiles.
  static int64_t rows_at_once(const WinogradProblem& p, const WinogradRange& r) {
    const int64_t across = ceil_div(p.width, kTile);
    const int64_t rows = larger(1, ceil_div(kWinogradTiles, across));
    return smaller(rows, larger(1, r.row_end - r.row_begin));
  }

  void run() {
    cut_depth();
    const int64_t rows_an_image = ceil_div(problem.height, kTile);
    for (int64_t row = range.row_begin; row < range.row_end; row += block_rows) {
      const int64_t rows = smaller(block_rows, range.row_end - row);
      for (int64_t q = 0; q < rows; ++q) {
        input.transform_row((row + q) / rows_an_image, (row + q) % rows_an_image,
                            tiles + q * input.tiles_across * input.tile_stride,
                            input.frequency_stride(block_tiles));
      }
      multiply(rows * input.tiles_across);
      for (int64_t q = 0; q < rows; ++q) {
        finish_row((row + q) / rows_an_image, (row + q) % rows_an_image, q * input.tiles_across);
      }
    }
  }

  // Even blocks of at most kDepthBlock, none across two sources.
  void cut_depth() {
    int64_t column = 0;
    for (int s = 0; s < problem.n_sources; ++s) {
      const int64_t c = problem.sources[s].channels, blocks = ceil_div(c, kDepthBlock);
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t begin = c * b / blocks, end = c * (b + 1) / blocks;
        depth_blocks[n_depth_blocks++] = {column + begin,
                                          problem.sources[s].weight_offset + begin, end - begin};
      }
      column += c;
    }
  }

  void multiply(int64_t count) {
    const int64_t last_lane = problem.first_lane + problem.lanes;
    for (int64_t f = 0; f < kFrequencies; ++f) {
      const float* from = tiles + f * input.frequency_stride(block_tiles);
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t panel = range.panel_begin + p;
        const float* rows = problem.panels + (f * problem.panel_count + panel) *
                                                 problem.panel_depth * kPanel;
        float* out = products + f * product_stride + p * kPanel;
        // The next panel, or the first one of the next frequency.
        const int64_t step = p + 1 < panels ? 1 : problem.panel_count - panels + 1;
        const float* next = rows + step * problem.panel_depth * kPanel;
        if (last_lane - panel * kPanel <= kVector) multiply_panel<1>(count, from, rows, next, out);
        else multiply_panel<2>(count, from, rows, next, out);
      }
    }
  }

  template <int kVectors>
  void multiply_panel(int64_t count, const float* from, const float* panel, const float* next,
                      float* out) {
    // Blocks of even size: so many of `rows` tiles, the others of one more.
    const int64_t blocks = ceil_div(count, kTileRows), rows = count / blocks;
    const int64_t larger_blocks = count - rows * blocks;
    for (int64_t b = 0; b < n_depth_blocks; ++b) {
      const DepthBlock& block = depth_blocks[b];
      const bool last = b + 1 == n_depth_blocks;
      PanelCall call{from + block.column, input.tile_stride, panel + block.depth * kPanel,
                     block.length,        b > 0,             out,
                     panels * kPanel,     next + depth_blocks[0].depth * kPanel};
      if (!last) call.fetched = panel + depth_blocks[b + 1].depth * kPanel;
      // Blocks of one tile more come first.
      if (kHalfLines > 0 && blocks > 1) {
        multiply_blocks<kVectors, kHalfLines>(call, larger_blocks ? rows + 1 : rows, 1);
        call.fetched += block.length * kHalfLines * kLine;
        multiply_blocks<kVectors, kHalfLines>(call, larger_blocks > 1 ? rows + 1 : rows, 1);
        const int64_t more = larger(larger_blocks - 2, 0);
        multiply_blocks<kVectors, 0>(call, rows + 1, more);
        multiply_blocks<kVectors, 0>(call, rows, blocks - 2 - more);
      } else {
        const int64_t more = larger(larger_blocks - 1, 0);
        multiply_blocks<kVectors, kRowLines>(call, larger_blocks ? rows + 1 : rows, 1);
        multiply_blocks<kVectors, 0>(call, rows + 1, more);
        multiply_blocks<kVectors, 0>(call, rows, blocks - 1 - more);
      }
    }
  }

  // biases[lane of the range] of image n.
  void gather_biases(int64_t n) {
    const int64_t first = range.panel_begin * kPanel - problem.first_lane;
    for (int64_t v = 0; v < panels * kPanel; ++v) {
      const int64_t channel = first + v;
      float bias = 0;
      if (channel >= 0 && channel < problem.lanes) {
        if (problem.bias) {
          bias = problem.bias_dtype == DType::kBFloat16
                     ? to_compute(static_cast<const Bf16*>(problem.bias)[channel])
                     : static_cast<const float*>(problem.bias)[channel];
        }
        if (problem.shift) bias += problem.shift[n * problem.lanes + channel];
      }
      biases[v] = bias;
    }
  }

  // Outputs of one tile row, of which products hold the tiles from first_tile on.
  void finish_row(int64_t n, int64_t tile_row, int64_t first_tile) {
    gather_biases(n);
    const int64_t top = tile_row * kTile, rows = smaller(kTile, problem.height - top);
    const int64_t begin = larger(range.panel_begin * kPanel, problem.first_lane);
    const int64_t end =
        smaller(range.panel_end * kPanel, problem.first_lane + problem.lanes);
    const int64_t first_pixel = (n * problem.height + top) * problem.width;
    for (int64_t tile = 0; tile < input.tiles_across; ++tile) {
      const int64_t left = tile * kTile, columns = smaller(kTile, problem.width - left);
      const float* from = products + (first_tile + tile) * panels * kPanel;
      const int64_t at = (first_pixel + left) * problem.lanes - problem.first_lane;
      const int64_t residual_at =
          residual_pixel(n * problem.height + top, left) * problem.lanes - problem.first_lane;
      for (int64_t v = 0; v < panels * kPanel; v += kVector) {
        const int64_t lane = range.panel_begin * kPanel + v;
        if (lane + kVector <= begin || lane >= end) continue;
        const int64_t lane_begin = larger(begin - lane, 0), lane_end = smaller(end - lane, kVector);
        if (rows == kTile && columns == kTile && lane_begin == 0 && lane_end == kVector) {
          finish_tile<true>(from + v, biases + v, at + lane, residual_at + lane, kTile, kTile, 0,
                            kVector);
        } else {
          finish_tile<false>(from + v, biases + v, at + lane, residual_at + lane, rows, columns,
                             lane_begin, lane_end);
        }
      }
    }
    if (problem.moments) {
      const int64_t blocks = ceil_div(problem.height, kTile), channel = begin - problem.first_lane;
      double* mean = problem.moments + (n * blocks + tile_row) * 2 * problem.lanes + channel;
      row_moments(static_cast<const T*>(problem.y) + first_pixel * problem.lanes + channel,
                  problem.lanes, rows * problem.width, end - begin, mean, mean + problem.lanes);
    }
  }

  // One vector of channels of one tile, at elements `at` + pixel * lanes of y, beside elements
  // `residual_at` + residual_offsets of the residual.
  template <bool kWhole>
  DDSM_INLINE void finish_tile(const float* from, const float* bias, int64_t at,
                               int64_t residual_at, int64_t rows, int64_t columns,
                               int64_t lane_begin, int64_t lane_end) {
    FloatVec p[kFrequencies], y[kTile * kTile];
    DDSM_UNROLL_TILE
    for (int f = 0; f < kFrequencies; ++f) p[f] = load(from + f * product_stride);
    transform_tile<kAlpha, kTile>(p, y, Winograd<kTile>::output);
    const FloatVec shift = load(bias);
    const T* residual = static_cast<const T*>(problem.residual);
    for (int64_t i = 0; i < (kWhole ? kTile : rows); ++i) {
      for (int64_t j = 0; j < (kWhole ? kTile : columns); ++j) {
        const int64_t element = at + (i * problem.width + j) * problem.lanes;
        T* to = static_cast<T*>(problem.y) + element;
        FloatVec value = y[i * kTile + j] + shift;
        if (kWhole) {
          if (residual) value += load(residual + residual_at + residual_offsets[i * kTile + j]);
          store(to, value);
          continue;
        }
        if (residual) {
          value += load_window(residual + residual_at + residual_offsets[i * kTile + j],
                               lane_begin, lane_end);
        }
        for (int64_t q = lane_begin; q < lane_end; ++q) from_compute(value[q], to + q);
      }
    }
  }
};

template <int kTile, class T>
size_t workspace(const WinogradProblem& problem, const WinogradRange& range) {
  Arena arena{nullptr, 0};
  Convolution<kTile, T> sizes(problem, range, arena);
  return arena.used;
}

template <int kTile, class T>
void run(const WinogradProblem& problem, const WinogradRange& range, void* memory) {
  Arena arena{static_cast<char*>(memory), 0};
  Convolution<kTile, T>(problem, range, arena).run();
}

}  // namespace

size_t winograd_workspace(const WinogradProblem& problem, const WinogradRange& range) {
  // Element types do not matter to the workspace.
  return problem.tile == 4 ? workspace<4, float>(problem, range)
                           : workspace<2, float>(problem, range);
}

void winograd_range(const WinogradProblem& problem, const WinogradRange& range, void* memory) {
  const bool narrow = problem.dtype == DType::kBFloat16;
  if (problem.tile == 4) {
    narrow ? run<4, Bf16>(problem, range, memory) : run<4, float>(problem, range, memory);
  } else {
    narrow ? run<2, Bf16>(problem, range, memory) : run<2, float>(problem, range, memory);
  }
}

}  // namespace ddsm::DDSM_ISA
