// Which path, tile and how many K splits a matrix product takes: pure functions, for every
// architecture from sm_80 on. No CUDA header.
#pragma once

#include <cstdint>
#include <cstdio>

namespace ddsm {

// How products are formed; sums are float32 always.
enum class Math : int32_t { kBFloat16, kFloat16, kTf32, kIeee };

struct GemmTile {
  int32_t m, n, warps_m, warps_n;
  int32_t resident;  // blocks that a multiprocessor should hold at a time
};

// Bytes of K a step. 64: a step of 32 channels of 16 bits wastes nothing; on sm_90a the rows of a
// bulk copy's widest swizzle, of which the products skip what lies past the last channel.
constexpr int32_t kStepBytes = 64;
constexpr int32_t kHopperStepBytes = 128;
constexpr int32_t kStages = 4;
// First the tiles of the portable path (sm_80 and later), then those of the sm_90a path.
constexpr GemmTile kTiles[] = {
    {128, 128, 2, 4, 2}, {128, 64, 2, 2, 3}, {64, 64, 2, 2, 4}, {64, 32, 2, 2, 5},
    {128, 128, 8, 1, 1}, {128, 64, 8, 1, 1}, {128, 32, 8, 1, 1}};
constexpr int32_t kPortableTiles = 4, kTileCount = 7;
constexpr int32_t kMaxSplits = 64;
// The one tile of kIeee, whose products run on the ordinary FMA units and gain nothing from a
// larger one, and of operands that are not aligned, which come element by element.
constexpr int32_t kPlainTile = 2;

struct GemmProblem {
  const char* name;
  Math math;
  int64_t m, n, k_steps;  // k_steps: of kStepBytes each, every tap and source rounded up
  int64_t batches;        // products of this size: 1, or the taps of a weight gradient
  bool aligned;           // every operand comes in chunks of 16 bytes, by cp.async
  int32_t multiprocessors;
  bool hopper;                 // takes the sm_90a path: k_steps are of kHopperStepBytes
  const char* hopper_refusal;  // null, or why that path cannot serve
};

struct GemmChoice {
  int32_t tile, splits;  // tile: index into kTiles
};

constexpr bool is_hopper_tile(int32_t tile) {
  return tile >= kPortableTiles && tile < kTileCount;
}

// True if there are kernels for the tile.
inline bool has_tile(const GemmProblem& problem, int32_t tile) {
  if (problem.hopper || tile >= kPortableTiles) return problem.hopper && is_hopper_tile(tile);
  return tile == kPlainTile || (problem.math != Math::kIeee && problem.aligned);
}

// The path of a product: the sm_90a one wherever it can serve, unless a tile (0: none, else 1 + its
// index) is forced. Which of the two is faster where has not been measured.
inline bool takes_hopper(const char* hopper_refusal, int32_t forced_tile) {
  return forced_tile == 0 ? hopper_refusal == nullptr : is_hopper_tile(forced_tile - 1);
}

inline int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Rows are counted in 32 bits, a tile past the end included; offsets in 64.
constexpr int64_t kMostRows = (int64_t(1) << 31) - 256;
constexpr const char* kTooManyRows = "more than 2^31 rows (pixels of all images together)";

// Null, or why no tile can serve the problem.
inline const char* refusal(const GemmProblem& problem) {
  if (problem.m > kMostRows) return kTooManyRows;
  if (problem.n > kMostRows) return "more than 2^31 columns";
  if (problem.k_steps > kMostRows) return "more than 2^31 steps along K";
  const int64_t tiles = blocks_of(problem.m, 64) * blocks_of(problem.n, 32);
  if (tiles > kMostRows) return "more than 2^31 tiles";
  if (problem.batches * kMaxSplits > 65535) return "a kernel with more than 1023 taps";
  return nullptr;
}

// Time of a choice in steps of a 128x128 tile on one multiprocessor, for choices of one path. Not
// yet fitted to a measurement: the constants are estimates from an A100's data sheet.
inline double estimated_cost(const GemmProblem& problem, const GemmChoice& choice) {
  constexpr double kEfficiency[kTileCount] = {1.0, 0.85, 0.7, 0.5, 1.0, 0.85, 0.5};
  constexpr double kFillSteps = 6;         // prologue and epilogue of a block
  constexpr double kBytesPerStep = 6000;   // of memory traffic of one multiprocessor
  constexpr double kReduceLaunch = 10;
  const GemmTile& tile = kTiles[choice.tile];
  const int64_t blocks = blocks_of(problem.m, tile.m) * blocks_of(problem.n, tile.n) *
                         problem.batches * choice.splits;
  const double area = tile.m * tile.n / (128.0 * 128.0) / kEfficiency[choice.tile];
  const double steps = static_cast<double>(blocks_of(problem.k_steps, choice.splits));
  const int64_t rounds = blocks_of(blocks, problem.multiprocessors);
  double cost = static_cast<double>(rounds) * (steps + kFillSteps) * area;
  if (choice.splits > 1) {
    const double outputs = static_cast<double>(problem.m) * problem.n * problem.batches;
    cost += kReduceLaunch +
            outputs * 4 * (2 * choice.splits + 1) / problem.multiprocessors / kBytesPerStep;
  }
  return cost;
}

inline GemmChoice choose_tile(const GemmProblem& problem) {
  constexpr int32_t kSplits[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, kMaxSplits};
  GemmChoice best{problem.hopper ? kPortableTiles : kPlainTile, 1};
  double best_cost = estimated_cost(problem, best);
  for (int32_t tile = 0; tile < kTileCount; ++tile) {
    if (!has_tile(problem, tile)) continue;
    // A tile twice as wide as the output computes nothing but padding in its other half.
    if (kTiles[tile].n > 32 && problem.n <= kTiles[tile].n / 2) continue;
    for (const int32_t splits : kSplits) {
      if (splits > problem.k_steps) continue;  // a block without a step
      const GemmChoice choice{tile, splits};
      const double cost = estimated_cost(problem, choice);
      if (cost < best_cost) {
        best_cost = cost;
        best = choice;
      }
    }
  }
  return best;
}

// One line for DDSM_PRINT_CHOICES; returns what snprintf does.
inline int describe(const GemmProblem& problem, const GemmChoice& choice, char* text,
                    size_t bytes) {
  constexpr const char* kNames[] = {"bf16", "fp16", "tf32", "ieee"};
  const char* reason = problem.hopper_refusal ? problem.hopper_refusal : "its tile was forced";
  return snprintf(text, bytes,
                  "ddsm_ext: %s %s m=%lld n=%lld k_steps=%lld x%lld: %dx%d, %d splits, %s%s%s",
                  problem.name, kNames[static_cast<int>(problem.math)],
                  static_cast<long long>(problem.m), static_cast<long long>(problem.n),
                  static_cast<long long>(problem.k_steps), static_cast<long long>(problem.batches),
                  kTiles[choice.tile].m, kTiles[choice.tile].n, choice.splits,
                  problem.hopper ? "sm_90a path" : "sm_80 path (",
                  problem.hopper ? "" : reason, problem.hopper ? "" : ")");
}

}  // namespace ddsm
