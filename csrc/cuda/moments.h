// Partial statistics of an image's channels. No CUDA header.
#pragma once

namespace ddsm {

// Mean and sum of squared deviations.
struct Moments {
  float mean, m2;
};

}  // namespace ddsm
