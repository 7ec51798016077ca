// Splits resampling over torch's pool by rows: of the smaller image where blocks of pixels belong
// to one, else of y.
#include "ddsm/resample.h"

#include "isa.h"

namespace ddsm {

DDSM_DECLARE_VARIANTS(void, resample_range, const ResampleArgs& args, int64_t begin, int64_t end)

namespace {

// Elements of such rows that pay for waking a thread: 10 us.
constexpr int64_t kGrainElements = 16384;

}  // namespace

void resample(const ResampleArgs& args) {
  const bool of_x = args.is_blockwise() && args.up;
  const int64_t rows = args.images * (of_x ? args.height : args.out_side(args.height));
  const int64_t elements = (of_x ? args.width : args.out_side(args.width)) * args.channels;
  if (rows == 0 || elements == 0) return;
  parallel_for(0, rows, kGrainElements / elements + 1, [&](int64_t begin, int64_t end) {
    DDSM_CALL_VARIANT(resample_range, args, begin, end);
  });
}

}  // namespace ddsm
