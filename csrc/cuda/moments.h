// Partial statistics of an image's channels. No CUDA header.
#pragma once

namespace ddsm {

// Mean and sum of squared deviations.
struct alignas(8) Moments {
  float mean, m2;
};

}  // namespace ddsm
