// How the gradient of sliced_activation splits its work.
#pragma once

#include <cstdint>

namespace ddsm {

// Rows over all images x channels of y.
struct ActivationRange {
  int64_t row_begin, row_end, channel_begin, channel_end;
};

// Where a gate's gradient is wanted, a range is all rows of one image x so many channels, so that
// the sums do not depend on the number of threads.
constexpr int64_t kGateChannels = 256;

}  // namespace ddsm
