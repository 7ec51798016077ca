// Which path, tile and how many K splits a matrix product takes: pure functions, for every
// architecture from sm_80 on. No CUDA header.
#pragma once

#include <cstdint>
#include <cstdio>

#include "ddsm/conv2d_cuda.h"

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
// First the tiles of the portable path (sm_80 and later), then those of the sm_90a path: up to 128
// rows are one warpgroup's, 256 both warpgroups' of a block.
constexpr GemmTile kTiles[] = {
    {128, 128, 2, 4, 2}, {128, 64, 2, 2, 3}, {64, 64, 2, 2, 4}, {64, 32, 2, 2, 5},
    {128, 128, 4, 1, 1}, {128, 64, 4, 1, 1}, {128, 32, 4, 1, 1}, {64, 64, 4, 1, 1},
    {64, 32, 4, 1, 1},   {256, 128, 8, 1, 1}};
constexpr int32_t kPortableTiles = 4, kTileCount = 10;
constexpr int32_t kMaxSplits = 64;
// The one tile of kIeee, whose products run on the ordinary FMA units and gain nothing from a
// larger one, and of operands that are not aligned, which come element by element.
constexpr int32_t kPlainTile = 2;

struct GemmProblem {
  const char* name;
  Math math;
  int64_t m, n, k_steps;  // k_steps: of kStepBytes each, every tap and source rounded up
  int64_t k_padding;      // of their elements, those that round up
  int64_t parts;          // weights side by side, each n / parts columns; GEGLU: 1, whose n counts
                          // the columns of both blocks
  int64_t batches;        // products of this size: 1, the taps of a weight gradient, or the classes
                          // of pixels of an enlarged image
  bool aligned;           // every operand comes in chunks of 16 bytes, by cp.async
  bool gradient;          // of x
  bool geglu;             // a tile of y has half as many columns as the product
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
constexpr bool is_shared_tile(int32_t tile) { return kTiles[tile].m > 128; }

// Whether the tile of the sm_90a path has a kernel for the gradient of x: the weight's rows lie
// across K there, in panels of 64 columns, of which no source is known to take half.
constexpr bool serves_gradient(int32_t tile) { return kTiles[tile].n >= 64; }

// Whether the tile of the sm_90a path has a kernel for GEGLU: y's rows there, half as wide, are
// those of a swizzle.
constexpr bool serves_geglu(int32_t tile) { return kTiles[tile].n >= 64; }

// True if there are kernels for the tile.
inline bool has_tile(const GemmProblem& problem, int32_t tile) {
  if (problem.hopper || tile >= kPortableTiles) {
    return problem.hopper && is_hopper_tile(tile) &&
           (!problem.gradient || serves_gradient(tile)) && (!problem.geglu || serves_geglu(tile));
  }
  return tile == kPlainTile || (problem.math != Math::kIeee && problem.aligned);
}

// The path of a product: the sm_90a one wherever it can serve, unless a tile (0: none, else 1 + its
// index) is forced. On an H200 it was the faster one for each of 12 convolutions, 1.4 to 3.1 times.
inline bool takes_hopper(const char* hopper_refusal, int32_t forced_tile) {
  return forced_tile == 0 ? hopper_refusal == nullptr : is_hopper_tile(forced_tile - 1);
}

constexpr int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Tiles of all batches. A tile of the sm_90a path is one weight's.
inline int64_t tiles_of(const GemmProblem& problem, int32_t tile) {
  const int64_t parts = problem.hopper ? problem.parts : 1;
  return blocks_of(problem.m, kTiles[tile].m) * parts *
         blocks_of(problem.n / parts, kTiles[tile].n) * problem.batches;
}

// Rows are counted in 32 bits, a tile past the end included; offsets in 64.
constexpr int64_t kMostRows = (int64_t(1) << 31) - 256;
constexpr const char* kTooManyRows = "more than 2^31 rows (pixels of all images together)";

// Null, or why no tile can serve the problem.
inline const char* refusal(const GemmProblem& problem) {
  if (problem.m > kMostRows) return kTooManyRows;
  if (problem.n > kMostRows) return "more than 2^31 columns";
  if (problem.k_steps > kMostRows) return "more than 2^31 steps along K";
  const int64_t tiles = blocks_of(problem.m, 64) * blocks_of(problem.n, 32) * problem.batches;
  if (tiles > kMostRows) return "more than 2^31 tiles";
  if (problem.batches * kMaxSplits > 65535) return "a kernel with more than 1023 taps";
  return nullptr;
}

// Whether the sums of a tile may be split so: tickets are few, and only one warpgroup takes one.
inline bool can_split(const GemmProblem& problem, const GemmChoice& choice) {
  return choice.splits == 1 ||
         (tiles_of(problem, choice.tile) <= kConvTickets && !is_shared_tile(choice.tile));
}

// ---- Estimates, in clocks of a multiprocessor. --------------------------------------------------
// Fitted to 1134 timings of 12 convolutions of the CIFAR-10 network at batch 1, 16 and 128 on an
// H200 (benchmarks/results/gpu). On the sm_90a path half of the estimates are within 8 % of the
// time at 1.755 GHz, and no choice is over 2.1 % slower than the best timed one. On the sm_80
// path they are a third too short there, and choices 5 % slower in the mean, at worst 20 %.
// Bytes a clock that come from the level-2 cache, that shared memory gives, and what a split leaves
// and finds in that cache.
constexpr double kCacheBytes = 40, kSharedBytes = 128, kSplitBytes = 42;
constexpr double kLaunchClocks = 7900;  // until the first products, and after the last ones
constexpr double kTicketClocks = 5000, kPortableTicketClocks = 1500;

// Of one step of one tile of the sm_90a path: products, or their operands' way.
constexpr double hopper_step_clocks(const GemmTile& tile) {
  const double product = tile.n / 2.0;  // of 64 rows and 16 of K
  const double shared = (64 * 32 + tile.n * 32) / kSharedBytes;
  const double products = tile.m / 64 * 4 * (product > shared ? product : shared) / 0.9;
  const double copies = (tile.m + tile.n) * double(kHopperStepBytes) / kCacheBytes;
  return products > copies ? products : copies;
}

// Of one step of one tile of the portable path: a quarter of the products' peak for the largest.
constexpr double portable_step_clocks(int32_t tile, Math math) {
  constexpr double kEfficiency[kPortableTiles] = {0.66, 0.48, 0.48, 0.32};
  const double units = math == Math::kIeee ? 8 : 1;
  return 640 * units * kTiles[tile].m * kTiles[tile].n / (128.0 * 128.0) / kEfficiency[tile];
}

// From the sums of a tile to what is stored.
constexpr double epilogue_clocks(const GemmTile& tile) {
  const int32_t rows = tile.m > 128 ? 128 : tile.m;  // of a warpgroup
  return 500 + rows * tile.n / 128.0 * 28;
}

inline double estimated_clocks(const GemmProblem& problem, const GemmChoice& choice) {
  const GemmTile& tile = kTiles[choice.tile];
  const int64_t works = tiles_of(problem, choice.tile) * choice.splits;
  const double steps = static_cast<double>(blocks_of(problem.k_steps, choice.splits));
  const double epilogue = epilogue_clocks(tile);
  double split = 0;  // of each work
  if (choice.splits > 1) {
    const int64_t rows = problem.m < tile.m ? problem.m : tile.m;
    const double ticket = problem.hopper ? kTicketClocks : kPortableTicketClocks;
    split = ticket + rows * tile.n * 4.0 * (1 + choice.splits) / kSplitBytes;
  }
  if (!problem.hopper) {
    const int64_t rounds = blocks_of(works, problem.multiprocessors);
    const double step = portable_step_clocks(choice.tile, problem.math);
    return kLaunchClocks + rounds * (steps * step + epilogue) + split;
  }
  // A block's tiles one after the other; of two warpgroups one finishes while the other multiplies.
  const auto rounds = static_cast<double>(blocks_of(works, problem.multiprocessors));
  // What a step has of padding is neither fetched nor multiplied.
  const double elements = static_cast<double>(problem.k_steps) * (kHopperStepBytes / 2);
  const double filled = 1 - static_cast<double>(problem.k_padding) / elements;
  const double products = steps * filled * hopper_step_clocks(tile);
  if (is_shared_tile(choice.tile)) return kLaunchClocks + rounds * (products + epilogue);
  const double longer = products > (epilogue + split) / 2 ? products : (epilogue + split) / 2;
  return kLaunchClocks + (rounds - 1) * longer + products + epilogue + split;
}

// `forced`: 1 + the index of the only tile to consider; 0: all.
inline GemmChoice choose_tile(const GemmProblem& problem, int32_t forced = 0) {
  constexpr int32_t kSplits[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, kMaxSplits};
  GemmChoice best{forced > 0 ? forced - 1 : problem.hopper ? kPortableTiles : kPlainTile, 1};
  if (!has_tile(problem, best.tile)) return best;
  double best_clocks = estimated_clocks(problem, best);
  for (int32_t tile = 0; tile < kTileCount; ++tile) {
    if (!has_tile(problem, tile) || (forced > 0 && tile != forced - 1)) continue;
    for (const int32_t splits : kSplits) {
      const GemmChoice choice{tile, splits};
      // A block without a step, or more splits than tickets.
      if (splits > problem.k_steps || !can_split(problem, choice)) continue;
      const double clocks = estimated_clocks(problem, choice);
      if (clocks < best_clocks) {
        best_clocks = clocks;
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
                  "ddsm_ext: %s %s m=%lld n=%lld k_steps=%lld x%lld: %dx%d, %d splits, %s%s%s, "
                  "%lld of k are padding",
                  problem.name, kNames[static_cast<int>(problem.math)],
                  static_cast<long long>(problem.m), static_cast<long long>(problem.n),
                  static_cast<long long>(problem.k_steps), static_cast<long long>(problem.batches),
                  kTiles[choice.tile].m, kTiles[choice.tile].n, choice.splits,
                  problem.hopper ? "sm_90a path" : "sm_80 path (",
                  problem.hopper ? "" : reason, problem.hopper ? "" : ")",
                  static_cast<long long>(problem.k_padding));
}

}  // namespace ddsm
