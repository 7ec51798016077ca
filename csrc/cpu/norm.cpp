// Splits the parts of group norm over torch's pool (see ddsm/norm.h).
#include "ddsm/norm.h"

#include <vector>

#include "isa.h"
#include "split.h"

namespace ddsm {

DDSM_DECLARE_VARIANTS(void, norm_moments_range, const NormMomentsArgs& args, int64_t begin,
                      int64_t end)
DDSM_DECLARE_VARIANTS(void, norm_merge_image, const NormMergeArgs& args, int64_t n,
                      double* scratch)
DDSM_DECLARE_VARIANTS(void, norm_apply_range, const NormApplyArgs& args, int64_t begin,
                      int64_t end)

namespace {

// Elements that pay for waking a thread: about 10 us of loads, fewer where exp is computed.
constexpr int64_t kGrainElements = 65536;
constexpr int64_t kSiluGrainElements = 16384;

}  // namespace

void norm_moments(const NormMomentsArgs& args) {
  const int64_t block = args.moments.block_pixels;
  parallel_for(0, args.images * ceil_div(args.pixels, block),
               kGrainElements / (block * args.channels) + 1, [&](int64_t begin, int64_t end) {
                 DDSM_CALL_VARIANT(norm_moments_range, args, begin, end);
               });
}

void norm_merge(const NormMergeArgs& args) {
  int64_t channels = 0, elements = 0;
  for (int s = 0; s < args.source_count; ++s) {
    const NormSource& source = args.sources[s];
    channels += source.channels;
    elements += 2 * source.channels * ceil_div(args.pixels, source.moments.block_pixels);
  }
  parallel_for(0, args.images, kGrainElements / elements + 1, [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(2 * channels);
    for (int64_t n = begin; n < end; ++n) {
      DDSM_CALL_VARIANT(norm_merge_image, args, n, scratch.data());
    }
  });
}

void norm_apply(const NormApplyArgs& args) {
  const int64_t channels = args.channels[0] + (args.x[1] ? args.channels[1] : 0);
  const int64_t grain = args.silu ? kSiluGrainElements : kGrainElements;
  parallel_for(0, args.images * args.pixels, grain / channels + 1,
               [&](int64_t begin, int64_t end) {
                 DDSM_CALL_VARIANT(norm_apply_range, args, begin, end);
               });
}

}  // namespace ddsm
