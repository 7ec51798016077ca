// Splits a Winograd convolution over torch's pool (see winograd.h).
#include "winograd.h"

#include <algorithm>

#include "gemm.h"
#include "isa.h"
#include "split.h"

namespace ddsm {

DDSM_DECLARE_VARIANTS(GemmTileShape, gemm_tile_shape, DType compute)
DDSM_DECLARE_VARIANTS(size_t, winograd_workspace, const WinogradProblem& problem,
                      const WinogradRange& range)
DDSM_DECLARE_VARIANTS(void, winograd_range, const WinogradProblem& problem,
                      const WinogradRange& range, void* workspace)

namespace {

// Transforming an input tile costs about as much as multiplying it with half a panel.
constexpr double kInputPanels = 0.5;
// Streaming a panel from memory takes as long as multiplying it with so many tiles.
constexpr double kPanelTiles = 10;
// Multiply-adds that pay for waking a thread: 10 us of work.
constexpr int64_t kMacsPerThread = 500000;

}  // namespace

bool winograd_multiply(const WinogradProblem& problem) {
  const int64_t rows = problem.images * ceil_div(problem.height, problem.tile);
  if (rows == 0 || problem.width == 0 || problem.lanes == 0) return true;
  const int64_t lanes = DDSM_CALL_VARIANT(gemm_tile_shape, DType::kFloat32).lanes;
  const int64_t first_panel = problem.first_lane / lanes;
  const int64_t panels = ceil_div(problem.first_lane + problem.lanes, lanes) - first_panel;
  int64_t depth = 0;
  for (int s = 0; s < problem.n_sources; ++s) depth += problem.sources[s].channels;
  const int64_t frequencies = (problem.tile + 2) * (problem.tile + 2);
  // A double, as it may be beyond 64 bits.
  const double macs = 1.0 * rows * ceil_div(problem.width, problem.tile) * frequencies * depth *
                      panels * lanes;
  const int64_t threads =
      static_cast<int64_t>(std::clamp<double>(macs / kMacsPerThread, 1, num_threads()));
  const double panel_rows = kPanelTiles / ceil_div(problem.width, problem.tile);
  const Split split = choose_split(threads, rows, panels, kInputPanels, panel_rows);
  const auto range_of = [&](int64_t index) {
    const SplitPart part = split_part(split, index, rows, panels);
    return WinogradRange{part.first_begin, part.first_end, first_panel + part.second_begin,
                         first_panel + part.second_end};
  };
  const int64_t chunks = split.first * split.second;
  size_t bytes = 0;
  for (int64_t index = 0; index < chunks; ++index) {
    bytes = std::max(bytes, DDSM_CALL_VARIANT(winograd_workspace, problem, range_of(index)));
  }
  char* workspace = static_cast<char*>(gemm_workspace(bytes * chunks));
  if (!workspace) return false;
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      DDSM_CALL_VARIANT(winograd_range, problem, range_of(index), workspace + index * bytes);
    }
  });
  return true;
}

}  // namespace ddsm
