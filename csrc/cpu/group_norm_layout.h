// How sliced_group_norm splits its work and lays out its scratch memory.
#pragma once

#include <cstdint>

#include "arithmetic.h"
#include "ddsm/group_norm.h"

namespace ddsm {

// Pixels whose per-channel sums are taken in the compute type before they are merged in double:
// short enough for fp32 sums, long enough to make the merging (1/64 of the elements) invisible.
// Fixed, so that results do not depend on the number of threads.
constexpr int64_t kGroupNormBlockPixels = 64;

// Elements below which a part of the work is not worth another thread.
constexpr int64_t kGroupNormGrain = 16384;

// Values a channel that the last pass reads, as rows of [channels] an image. The forward has
// GroupNormMergeArgs::norm in their place.
enum GroupNormCoefficient : int {
  kCoefMean = 0,
  kCoefScale,      // rstd * gamma
  kCoefBeta,       // with FiLM in it, as gamma
  kCoefRstd,
  kCoefGamma,
  kCoefGradMean,   // rstd * mean over the group of (gamma * du)
  kCoefGradSlope,  // rstd * mean over the group of (gamma * du * xhat)
  kCoefCount
};

// Scratch: two doubles a (image, block, channel), two a (image, channel), then the coefficients
// (as doubles' space, used as the compute type).
struct GroupNormLayout {
  int64_t channels, blocks;
  int64_t partials, sums, coefficients;  // first byte of each part
  int64_t bytes;
};

// Static, as all below: each instruction-set variant keeps its own copy (see isa.h).
static inline GroupNormLayout group_norm_layout(const GroupNormArgs& args) {
  GroupNormLayout layout = {};
  for (int64_t s = 0; s < args.source_count; ++s) layout.channels += args.sources[s].c;
  layout.blocks = ceil_div(args.pixels, kGroupNormBlockPixels);
  const int64_t per_image = layout.channels * static_cast<int64_t>(sizeof(double));
  layout.sums = args.n * layout.blocks * 2 * per_image;
  layout.coefficients = layout.sums + args.n * 2 * per_image;
  layout.bytes = layout.coefficients + args.n * kCoefCount * per_image;
  return layout;
}

// reduce(n, block) for all blocks, then merge(n), then finish(n, block). Whole images a thread
// where there are enough (their second pass finds them in the cache), else blocks.
template <class Reduce, class Merge, class Finish>
static inline void group_norm_schedule(const GroupNormArgs& args, const GroupNormLayout& layout,
                                       const Reduce& reduce, const Merge& merge,
                                       const Finish& finish) {
  const int64_t blocks = layout.blocks, threads = num_threads();
  const int64_t image_grain = kGroupNormGrain / (args.pixels * layout.channels) + 1;
  if (threads == 1 || args.n % threads == 0 || args.n >= 4 * threads) {
    parallel_for(0, args.n, image_grain, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t b = 0; b < blocks; ++b) reduce(n, b);
        merge(n);
        for (int64_t b = 0; b < blocks; ++b) finish(n, b);
      }
    });
    return;
  }
  const int64_t grain = kGroupNormGrain / (kGroupNormBlockPixels * layout.channels) + 1;
  parallel_for(0, args.n * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) reduce(i / blocks, i % blocks);
  });
  for (int64_t n = 0; n < args.n; ++n) merge(n);
  parallel_for(0, args.n * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) finish(i / blocks, i % blocks);
  });
}

}  // namespace ddsm
