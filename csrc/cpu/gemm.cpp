// Splits the work of a GEMM over torch's pool and gives every chunk its piece of a workspace.
#include "gemm.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "isa.h"
#include "split.h"

namespace ddsm {

DDSM_DECLARE_VARIANTS(GemmTileShape, gemm_tile_shape, DType compute)
DDSM_DECLARE_VARIANTS(size_t, gemm_multiply_workspace, const GemmArgs& problem,
                      const GemmPhase& phase)
DDSM_DECLARE_VARIANTS(void, gemm_multiply_range, const GemmArgs& problem,
                      const GemmPhase& phase, const GemmRange& range, void* workspace)
DDSM_DECLARE_VARIANTS(size_t, gemm_accumulate_workspace, const GemmArgs& problem,
                      const GemmPhase& phase, const GemmRange& range)
DDSM_DECLARE_VARIANTS(void, gemm_accumulate_range, const GemmArgs& problem,
                      const GemmPhase& phase, const GemmRange& range, void* workspace)
DDSM_DECLARE_VARIANTS(void, gemm_accumulate_bias_range, const GemmArgs& problem,
                      const GemmPhase& phase, int64_t first_lane, int64_t lanes, void* bias)

namespace {

// Multiply-adds that pay for waking a thread: 5 us of work. Between the calls of a step the threads
// are still awake: on two cores of a Zen 4, 3x3 convolutions of 64 channels and 16 pixels took 0.6
// times as long as on one.
constexpr int64_t kMacsPerThread = 250000;
// Streaming a packed panel from memory takes as long as multiplying it with so many pixels.
constexpr int64_t kPanelPixels = 12;
// Packing a panel costs about as much as multiplying it with this many pixels.
constexpr int64_t kPackPixels = 5;

// A double, as it may be beyond 64 bits.
double macs(const GemmArgs& problem, const GemmPhase& phase) {
  int64_t depth = 0;
  for (int s = 0; s < problem.n_sources; ++s) depth += problem.sources[s].channels;
  return 1.0 * problem.images * phase.rows * phase.cols * problem.parts * problem.lanes *
         phase.n_taps * depth;
}

int64_t useful_threads(const GemmArgs& problem, const GemmPhase& phase) {
  const double threads = macs(problem, phase) / kMacsPerThread;
  return static_cast<int64_t>(std::clamp<double>(threads, 1, num_threads()));
}

GemmRange chunk_range(const Split& split, int64_t index, int64_t first_units,
                      int64_t second_units) {
  const SplitPart part = split_part(split, index, first_units, second_units);
  return {part.first_begin, part.first_end, part.second_begin, part.second_end};
}

}  // namespace

void* gemm_workspace(size_t bytes) {
  struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
  };
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local size_t held = 0;
  if (held < bytes || !buffer) {
    held = 0;
    buffer.reset();
    buffer.reset(std::aligned_alloc(64, round_up(std::max<size_t>(bytes, 64), 64)));
    if (buffer) held = bytes;
  }
  return buffer.get();
}

bool gemm_multiply(const GemmArgs& problem, const GemmPhase& phase) {
  const int64_t pixels = problem.images * phase.rows * phase.cols;
  if (pixels == 0 || problem.lanes == 0) return true;
  const GemmTileShape tile = DDSM_CALL_VARIANT(gemm_tile_shape, problem.compute);
  const int64_t tiles = ceil_div(pixels, tile.rows);
  const int64_t panels = gemm_panels(problem, tile.lanes);
  const int64_t panel_tiles = ceil_div(phase.panels ? kPanelPixels : kPackPixels, tile.rows);
  const Split split = choose_split(useful_threads(problem, phase), tiles, panels, 0, panel_tiles);
  const size_t bytes = round_up(DDSM_CALL_VARIANT(gemm_multiply_workspace, problem, phase), 64);
  const int64_t chunks = split.first * split.second;
  char* workspace = static_cast<char*>(gemm_workspace(bytes * chunks));
  if (!workspace) return false;
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      GemmRange range = chunk_range(split, index, tiles, panels);
      range.first_begin *= tile.rows;
      range.first_end = std::min(range.first_end * tile.rows, pixels);
      DDSM_CALL_VARIANT(gemm_multiply_range, problem, phase, range, workspace + index * bytes);
    }
  });
  return true;
}

bool gemm_accumulate(const GemmArgs& problem, const GemmPhase& phase) {
  if (problem.images * phase.rows * phase.cols == 0 || problem.lanes == 0 || phase.n_taps == 0) {
    return true;
  }
  const GemmTileShape tile = DDSM_CALL_VARIANT(gemm_tile_shape, problem.compute);
  const int64_t tiles = ceil_div(problem.lanes, tile.rows);
  int64_t panels = 0;
  for (int s = 0; s < problem.n_sources; ++s) {
    panels += ceil_div(problem.sources[s].channels, tile.lanes);
  }
  const Split split = choose_split(useful_threads(problem, phase), tiles, panels, 0, 1);
  const int64_t chunks = split.first * split.second;
  size_t bytes = 0;
  for (int64_t index = 0; index < chunks; ++index) {
    const GemmRange range = chunk_range(split, index, tiles, panels);
    const size_t needed = DDSM_CALL_VARIANT(gemm_accumulate_workspace, problem, phase, range);
    bytes = std::max<size_t>(bytes, round_up(needed, 64));
  }
  char* workspace = static_cast<char*>(gemm_workspace(bytes * chunks));
  if (!workspace) return false;
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      DDSM_CALL_VARIANT(gemm_accumulate_range, problem, phase,
                        chunk_range(split, index, tiles, panels), workspace + index * bytes);
    }
  });
  return true;
}

void gemm_accumulate_bias(const GemmArgs& problem, const GemmPhase& phase, void* bias) {
  const int64_t pixels = problem.images * phase.rows * phase.cols;
  if (pixels == 0) return;
  const int64_t lanes = DDSM_CALL_VARIANT(gemm_tile_shape, problem.compute).lanes;
  const int64_t panels = ceil_div(problem.lanes, lanes);
  const int64_t grain = std::max<int64_t>(1, kMacsPerThread / (pixels * lanes));
  parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * lanes, problem.lanes);
    DDSM_CALL_VARIANT(gemm_accumulate_bias_range, problem, phase, begin * lanes,
                      last - begin * lanes, bias);
  });
}

}  // namespace ddsm
