// Winograd convolution of a range of tile rows and panels (see winograd.h): padded, normalised
// input rows in a ring, transformed tiles, one matrix product a frequency, output transform with
// the fused epilogue.
#include "group_norm_strips.h"
#include "winograd.h"
#include "winograd_input.h"

namespace ddsm::DDSM_ISA {
namespace {

// Depth of one pass over a panel: with its row tile it stays in a 32 KB L1, and sums start afresh.
constexpr int64_t kDepthBlock = kVectorBytes == 64 ? 224 : 384;

constexpr int64_t kLine = 16;  // floats of a cache line
// Cache lines of a panel row, and of those a block's share where two blocks of tiles fetch.
constexpr int kRowLines = kPanelLanes<float> < kLine ? 1 : kPanelLanes<float> / kLine;
constexpr int kHalfLines = kRowLines / 2;

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
template <int kRows, class Shape, int kLines>
__attribute__((noinline)) void multiply_rows(const PanelCall& call, int64_t blocks) {
  constexpr int kPanel = kPanelLanes<float>;
  const float* tiles = call.tiles;
  float* out = call.out;
  for (; blocks > 0; --blocks, tiles += kRows * call.tile_stride, out += kRows * call.out_stride) {
    PanelSum<float, Shape> sum[kRows];
    const float* a[kRows];  // ends of the rows: counting up to zero saves the register of a bound
    DDSM_UNROLL
    for (int i = 0; i < kRows; ++i) {
      a[i] = tiles + i * call.tile_stride + call.length;
      sum[i].clear();
    }
    const float* panel = call.panel;
    const float* fetched = call.fetched;
    for (int64_t p = -call.length; p != 0; ++p, panel += kPanel) {
      PanelSum<float, Shape> b;
      b.read(panel);
      if constexpr (kLines > 0) {
        prefetch_panel(panel);
        DDSM_UNROLL
        for (int line = 0; line < kLines; ++line, fetched += kLine) {
          __builtin_prefetch(fetched, 0, 2);
        }
      }
      DDSM_UNROLL
      for (int i = 0; i < kRows; ++i) sum[i].add_product(a[i][p], b);
    }
    DDSM_UNROLL
    for (int i = 0; i < kRows; ++i) {
      if (call.accumulate) {
        PanelSum<float, Shape> before;
        before.read(out + i * call.out_stride);
        sum[i].add(before);
      }
      sum[i].write(out + i * call.out_stride);
    }
  }
}

// multiply_rows for a row count known only now; call moves on to the tiles behind.
template <class Shape, int kLines, int kRows = kTileRows>
void multiply_blocks(PanelCall& call, int64_t rows, int64_t blocks) {
  if (rows == kRows) {
    multiply_rows<kRows, Shape, kLines>(call, blocks);
    call.tiles += rows * blocks * call.tile_stride;
    call.out += rows * blocks * call.out_stride;
  } else if constexpr (kRows > 1) {
    multiply_blocks<Shape, kLines, kRows - 1>(call, rows, blocks);
  }
}

// Tiles in blocks of even size: so many of `rows` tiles, of which the first have one more.
struct TileBlocks {
  int64_t count, rows, larger_count;

  explicit TileBlocks(int64_t tiles) : count(ceil_div(tiles, kTileRows)) {
    rows = tiles / count;
    larger_count = tiles - rows * count;
  }
  int64_t rows_of(int64_t block) const { return rows + (block < larger_count); }
};

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
  // Products of few lanes lie side by side without gaps: vectors of the output transform run over
  // several tiles, and their outputs wait in `finished` to be taken apart.
  bool dense;
  int64_t tile_lanes;      // floats between the products of two tiles
  int64_t product_stride;  // between frequencies
  int64_t finished_stride;  // between the pixels of a tile
  int64_t residual_offsets[kTile * kTile];  // of a tile's pixels, from its first one
  float *tiles, *products, *biases, *finished;
  int64_t biases_image = -1;  // whose biases these are; -1: none
  DepthBlock* depth_blocks;
  int64_t n_depth_blocks = 0;

  Convolution(const WinogradProblem& p, const WinogradRange& r, Arena& arena)
      : problem(p), range(r), input(p, arena, true) {
    panels = r.panel_end - r.panel_begin;
    block_rows = rows_at_once(p, r);
    block_tiles = block_rows * input.tiles_across;
    dense = kHasHalves && p.first_lane == 0 && p.lanes <= kVector / 2;
    tile_lanes = dense ? kVector / 2 : panels * kPanel;
    product_stride = odd_stride(block_tiles * tile_lanes);
    finished_stride = odd_stride(input.tiles_across * tile_lanes + kVector);
    tiles = arena.take<float>(kFrequencies * input.frequency_stride(block_tiles));
    products = arena.take<float>(kFrequencies * product_stride);
    biases = arena.take<float>(panels * kPanel);
    finished = arena.take<float>(dense ? kTile * kTile * finished_stride : 0);
    depth_blocks = arena.take<DepthBlock>(2 + input.channels / kDepthBlock + 2);
    for (int64_t i = 0; i < kTile * kTile; ++i) {
      residual_offsets[i] = residual_pixel(i / kTile, i % kTile) * p.lanes;
    }
  }

  // The residual's pixel below row i, column j of y: rows of all images count on.
  int64_t residual_pixel(int64_t i, int64_t j) const {
    const int64_t scale = problem.residual_scale;
    if (scale == 1) return i * problem.width + j;  // a division takes longer than a small tile
    return i / scale * (problem.width / scale) + j / scale;
  }

  // Whole tile rows of about winograd_tiles.
  int64_t rows_at_once(const WinogradProblem& p, const WinogradRange& r) const {
    const int64_t wanted = winograd_tiles(input.channels, p.lanes);
    const int64_t rows = larger(1, ceil_div(wanted, input.tiles_across));
    return smaller(rows, larger(1, r.row_end - r.row_begin));
  }

  void run() {
    cut_depth();
    input.begin();
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
    const TileBlocks blocks(count);
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
        with_panel_shape<float>(last_lane - panel * kPanel, [&](auto shape) {
          multiply_panel<decltype(shape)>(blocks, from, rows, next, out);
        });
      }
    }
  }

  template <class Shape>
  void multiply_panel(const TileBlocks& blocks, const float* from, const float* panel,
                      const float* next, float* out) {
    for (int64_t b = 0; b < n_depth_blocks; ++b) {
      const DepthBlock& block = depth_blocks[b];
      const bool last = b + 1 == n_depth_blocks;
      PanelCall call{from + block.column, input.tile_stride, panel + block.depth * kPanel,
                     block.length,        b > 0,             out,
                     tile_lanes,          next + depth_blocks[0].depth * kPanel};
      if (!last) call.fetched = panel + depth_blocks[b + 1].depth * kPanel;
      if (kHalfLines > 0 && blocks.count > 1) {
        multiply_blocks<Shape, kHalfLines>(call, blocks.rows_of(0), 1);
        call.fetched += block.length * kHalfLines * kLine;
        multiply_blocks<Shape, kHalfLines>(call, blocks.rows_of(1), 1);
        multiply_rest<Shape>(call, blocks, 2);
      } else {
        multiply_blocks<Shape, kRowLines>(call, blocks.rows_of(0), 1);
        multiply_rest<Shape>(call, blocks, 1);
      }
    }
  }

  // The blocks from number `done` on, which fetch nothing.
  template <class Shape>
  static void multiply_rest(PanelCall& call, const TileBlocks& blocks, int64_t done) {
    const int64_t more = larger(blocks.larger_count - done, 0);
    if (more > 0) multiply_blocks<Shape, 0>(call, blocks.rows + 1, more);
    const int64_t rest = blocks.count - done - more;
    if (rest > 0) multiply_blocks<Shape, 0>(call, blocks.rows, rest);
  }

  // biases[lane of the range] of image n.
  void gather_biases(int64_t n) {
    if (biases_image == n || (biases_image >= 0 && !problem.shift)) return;
    biases_image = n;
    const int64_t first = range.panel_begin * kPanel - problem.first_lane;
    const int64_t begin = larger(0, -first);
    const int64_t end = smaller(panels * kPanel, problem.lanes - first);
    std::memset(biases, 0, sizeof(float) * panels * kPanel);
    if (problem.bias && problem.bias_dtype == DType::kBFloat16) {
      copy_floats(static_cast<const Bf16*>(problem.bias) + first + begin, end - begin,
                  biases + begin);
    } else if (problem.bias) {
      copy_floats(static_cast<const float*>(problem.bias) + first + begin, end - begin,
                  biases + begin);
    }
    if (!problem.shift) return;
    const float* shift = problem.shift + n * problem.lanes + first;
    for (int64_t v = begin; v < end; ++v) biases[v] += shift[v];
  }

  // Outputs of one tile row, of which products hold the tiles from first_tile on.
  void finish_row(int64_t n, int64_t tile_row, int64_t first_tile) {
    gather_biases(n);
    const int64_t top = tile_row * kTile, rows = smaller(kTile, problem.height - top);
    if (dense) finish_dense(n, top, rows, products + first_tile * tile_lanes);
    else finish_tiles(n, top, rows, products + first_tile * tile_lanes);
    if (!problem.moments) return;
    const int64_t begin = larger(range.panel_begin * kPanel - problem.first_lane, 0);
    const int64_t end =
        smaller(range.panel_end * kPanel - problem.first_lane, problem.lanes);
    const int64_t blocks = ceil_div(problem.height, kTile);
    double* mean = problem.moments + (n * blocks + tile_row) * 2 * problem.lanes + begin;
    row_moments(static_cast<const T*>(problem.y) +
                    (n * problem.height + top) * problem.width * problem.lanes + begin,
                problem.lanes, rows * problem.width, end - begin, end - begin == problem.lanes,
                mean, mean + problem.lanes);
  }

  // `rows` rows of y from row `top` of image n on, tile by tile.
  void finish_tiles(int64_t n, int64_t top, int64_t rows, const float* from) {
    const int64_t begin = larger(range.panel_begin * kPanel, problem.first_lane);
    const int64_t end =
        smaller(range.panel_end * kPanel, problem.first_lane + problem.lanes);
    const int64_t first = range.panel_begin * kPanel;
    const int64_t first_pixel = (n * problem.height + top) * problem.width;
    for (int64_t tile = 0; tile < input.tiles_across; ++tile, from += tile_lanes) {
      const int64_t left = tile * kTile, columns = smaller(kTile, problem.width - left);
      const int64_t at = (first_pixel + left) * problem.lanes - problem.first_lane;
      const int64_t residual_at =
          residual_pixel(n * problem.height + top, left) * problem.lanes - problem.first_lane;
      // Whole vectors of the panels, from the one that holds the first lane on.
      const int64_t skipped = (begin - first) / kVector * kVector;
      for_each_vector(end - first - skipped, [&](auto vector, int64_t v) {
        v += skipped;
        const int64_t lane = first + v;
        const TileEnd tile_end{from + v,
                               biases + v,
                               at + lane,
                               residual_at + lane,
                               rows,
                               columns,
                               larger(begin - lane, 0),
                               smaller(end - lane, kVector)};
        if (rows == kTile && columns == kTile && tile_end.begin == 0 && tile_end.end == kVector) {
          finish_tile<true, decltype(vector)>(tile_end);
        } else {
          finish_tile<false, decltype(vector)>(tile_end);
        }
      });
    }
  }

  // One vector of a tile's channels, of which [begin, end) are stored: at elements `at` + pixel *
  // lanes of y, beside elements `residual_at` + residual_offsets of the residual.
  struct TileEnd {
    const float *from, *bias;
    int64_t at, residual_at, rows, columns, begin, end;
  };

  template <bool kWhole, class V>
  DDSM_INLINE void finish_tile(const TileEnd& tile) {
    V p[kFrequencies], y[kTile * kTile];
    DDSM_UNROLL_TILE
    for (int f = 0; f < kFrequencies; ++f) p[f] = load_as<V>(tile.from + f * product_stride);
    transform_tile<kAlpha, kTile>(p, y, Winograd<kTile>::template output<V>);
    const FloatVec shift = load(tile.bias);
    const T* residual = static_cast<const T*>(problem.residual);
    for (int64_t i = 0; i < (kWhole ? kTile : tile.rows); ++i) {
      for (int64_t j = 0; j < (kWhole ? kTile : tile.columns); ++j) {
        T* to = static_cast<T*>(problem.y) + tile.at + (i * problem.width + j) * problem.lanes;
        const int64_t more = tile.residual_at + residual_offsets[i * kTile + j];
        FloatVec value = widened(y[i * kTile + j]) + shift;
        if (kWhole) {
          if (residual) value += load(residual + more);
          store(to, value * problem.gain);
        } else if (tile.begin == 0) {
          if (residual) value += load_first(residual + more, tile.end);
          store_first(to, value * problem.gain, tile.end);
        } else {
          if (residual) value += load_window(residual + more, tile.begin, tile.end);
          value *= problem.gain;
          for (int64_t q = tile.begin; q < tile.end; ++q) from_compute(value[q], to + q);
        }
      }
    }
  }

  // The same of few lanes: vectors of several tiles first, then each pixel's part of them.
  void finish_dense(int64_t n, int64_t top, int64_t rows, const float* from) {
    for_each_vector(input.tiles_across * tile_lanes, [&](auto vector, int64_t at) {
      using V = decltype(vector);
      V p[kFrequencies], y[kTile * kTile];
      DDSM_UNROLL_TILE
      for (int f = 0; f < kFrequencies; ++f) p[f] = load_as<V>(from + at + f * product_stride);
      transform_tile<kAlpha, kTile>(p, y, Winograd<kTile>::template output<V>);
      DDSM_UNROLL_TILE
      for (int i = 0; i < kTile * kTile; ++i) store_as(finished + at + i * finished_stride, y[i]);
    });
    const int64_t row = n * problem.height + top;
    const FloatVec shift = load(biases);
    const T* residual = static_cast<const T*>(problem.residual);
    with_few(problem.lanes, [&](auto lanes) {
      for (int64_t i = 0; i < rows; ++i) {
        T* to = static_cast<T*>(problem.y) + (row + i) * problem.width * lanes;
        const int64_t more = residual_pixel(row + i, 0);
        const float* pixel = finished + i * kTile * finished_stride;
        for (int64_t x = 0; x < problem.width; ++x, to += lanes) {
          FloatVec value =
              load(pixel + x % kTile * finished_stride + x / kTile * tile_lanes) + shift;
          if (residual) {
            const int64_t across = problem.residual_scale == 1 ? x : x / problem.residual_scale;
            value += load_few(residual + (more + across) * lanes, lanes);
          }
          store_few(to, value * problem.gain, lanes);
        }
      }
    });
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
