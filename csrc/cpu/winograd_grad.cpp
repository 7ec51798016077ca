// Splits the Winograd gradient of the weights over torch's pool (see winograd.h): blocks of tiles
// one after another, each transformed by rows of tiles and multiplied by frequencies.
#include <algorithm>
#include <cstring>

#include "gemm.h"
#include "isa.h"
#include "split.h"
#include "winograd.h"

namespace ddsm {

DDSM_DECLARE_VARIANTS(GemmTileShape, gemm_tile_shape, DType compute)
DDSM_DECLARE_VARIANTS(size_t, winograd_grad_floats, const WinogradProblem& problem,
                      const WinogradGradWeight& gradient, int64_t rows, bool inputs)
DDSM_DECLARE_VARIANTS(size_t, winograd_grad_workspace, const WinogradProblem& problem)
DDSM_DECLARE_VARIANTS(void, winograd_grad_transform, const WinogradProblem& problem,
                      const WinogradGradWeight& gradient, const WinogradGradBlock& block,
                      int64_t begin, int64_t end, void* memory)
DDSM_DECLARE_VARIANTS(void, winograd_grad_multiply, const WinogradProblem& problem,
                      const WinogradGradWeight& gradient, const WinogradGradBlock& block,
                      int64_t begin, int64_t end)
DDSM_DECLARE_VARIANTS(void, winograd_grad_add, const WinogradProblem& problem,
                      const WinogradGradWeight& gradient, const WinogradGradBlock& block,
                      int64_t begin, int64_t end)

namespace {

// Tiles summed between two visits to the sums, which mostly lie in the L3.
constexpr int64_t kTiles = 128;
constexpr int64_t kFloatsPerThread = 1 << 15;
constexpr int64_t kMacsPerThread = 200000;

}  // namespace

bool winograd_accumulate(const WinogradProblem& problem, const WinogradGradWeight& gradient) {
  const int64_t across = ceil_div(problem.width, problem.tile);
  const int64_t all_rows = problem.images * ceil_div(problem.height, problem.tile);
  const int64_t frequencies = (problem.tile + 2) * (problem.tile + 2);
  const int64_t lanes = gradient.grad_y.channels;
  if (all_rows == 0 || across == 0 || lanes == 0) return true;
  int64_t channels = 0;
  for (int s = 0; s < problem.n_sources; ++s) channels += problem.sources[s].channels;

  WinogradGradBlock block{};
  const int64_t vector = DDSM_CALL_VARIANT(gemm_tile_shape, DType::kFloat32).lanes / 2;
  block.sum_stride = round_up(channels, vector);
  const int64_t rows = std::min(all_rows, std::max<int64_t>(1, kTiles / across));
  const size_t inputs = DDSM_CALL_VARIANT(winograd_grad_floats, problem, gradient, rows, true);
  const size_t outputs = DDSM_CALL_VARIANT(winograd_grad_floats, problem, gradient, rows, false);
  const size_t sums = frequencies * lanes * block.sum_stride;
  const size_t ring = DDSM_CALL_VARIANT(winograd_grad_workspace, problem);
  const int64_t grain = kFloatsPerThread / (frequencies * across * (channels + lanes)) + 1;
  const int64_t chunks = std::min<int64_t>(num_threads(), ceil_div(rows, grain));
  char* memory = static_cast<char*>(
      gemm_workspace(sizeof(float) * (inputs + outputs + sums) + ring * chunks));
  if (!memory) return false;
  block.inputs = reinterpret_cast<float*>(memory + ring * chunks);
  block.outputs = block.inputs + inputs;
  block.sums = block.outputs + outputs;
  std::memset(block.sums, 0, sizeof(float) * sums);

  for (int64_t first = 0; first < all_rows; first += rows) {
    block.first_row = first;
    block.rows = std::min(rows, all_rows - first);
    parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        DDSM_CALL_VARIANT(winograd_grad_transform, problem, gradient, block,
                          block.rows * i / chunks, block.rows * (i + 1) / chunks,
                          memory + ring * i);
      }
    });
    const int64_t macs = block.rows * across * channels * lanes;
    parallel_for(0, frequencies, kMacsPerThread / macs + 1, [&](int64_t begin, int64_t end) {
      DDSM_CALL_VARIANT(winograd_grad_multiply, problem, gradient, block, begin, end);
    });
  }
  parallel_for(0, lanes, kFloatsPerThread / (frequencies * channels) + 1,
               [&](int64_t begin, int64_t end) {
                 DDSM_CALL_VARIANT(winograd_grad_add, problem, gradient, block, begin, end);
               });
  return true;
}

}  // namespace ddsm
