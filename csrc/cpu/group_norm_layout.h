// How the group norm kernels split the work and lay out their scratch memory.
#pragma once

#include <cstdint>

#include "ddsm/group_norm.h"

namespace ddsm {

// Pixels whose per-channel sums are taken in the compute type before they are merged in double:
// short enough for fp32 sums, long enough to make the merging (1/64 of the elements) invisible.
// Fixed, so that results do not depend on the number of threads.
constexpr int64_t kGroupNormBlockPixels = 64;

// Values a channel that the last pass reads, as rows of [channels] an image.
enum GroupNormCoefficient : int {
  kCoefMean = 0,
  kCoefScale,     // rstd * gamma
  kCoefBeta,
  kCoefRstd,      // backward only, as the ones below
  kCoefGamma,
  kCoefGradMean,  // rstd * mean over the group of (gamma * du)
  kCoefGradSlope, // rstd * mean over the group of (gamma * du * xhat)
  kCoefCount
};

// Scratch: two doubles a (image, block, channel), two a (image, channel), then the coefficients
// (as doubles' space, used as the compute type).
struct GroupNormLayout {
  int64_t channels, blocks;
  int64_t partials, sums, coefficients;  // first byte of each part
  int64_t bytes;
};

// Static: each instruction-set variant keeps its own copy (see isa.h).
static inline GroupNormLayout group_norm_layout(const GroupNormArgs& args) {
  GroupNormLayout layout = {};
  for (int64_t s = 0; s < args.source_count; ++s) layout.channels += args.sources[s].c;
  layout.blocks = (args.pixels + kGroupNormBlockPixels - 1) / kGroupNormBlockPixels;
  const int64_t per_image = layout.channels * static_cast<int64_t>(sizeof(double));
  layout.sums = args.n * layout.blocks * 2 * per_image;
  layout.coefficients = layout.sums + args.n * 2 * per_image;
  layout.bytes = layout.coefficients + args.n * kCoefCount * per_image;
  return layout;
}

}  // namespace ddsm
