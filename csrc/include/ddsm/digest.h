// Digests of memory: whether the content of weights is what it was.
#pragma once

#include <cstdint>

#include "ddsm/types.h"

namespace ddsm {

// A number that differs for other content of the same size: surely if they differ in one word of 8
// bytes, else but for one case in 2^64. It reads every byte once, at about the memory's rate.
DDSM_EXPORT uint64_t digest(const void* data, int64_t bytes);

}  // namespace ddsm
