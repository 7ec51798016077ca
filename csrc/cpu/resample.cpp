// Splits resampling over torch's pool by rows: of x where it is enlarged, else of y.
#include "ddsm/resample.h"

#include "isa.h"

namespace ddsm {

DDSM_DECLARE_VARIANTS(void, resample_range, const ResampleArgs& args, int64_t begin, int64_t end)

namespace {

// Elements of x or y, whichever is smaller, that pay for waking a thread: 10 us.
constexpr int64_t kGrainElements = 16384;

}  // namespace

void resample(const ResampleArgs& args) {
  const int64_t rows = args.images * (args.up ? args.height : args.height / 2);
  const int64_t elements = (args.up ? args.width : args.width / 2) * args.channels;
  if (rows == 0 || elements == 0) return;
  parallel_for(0, rows, kGrainElements / elements + 1, [&](int64_t begin, int64_t end) {
    DDSM_CALL_VARIANT(resample_range, args, begin, end);
  });
}

}  // namespace ddsm
