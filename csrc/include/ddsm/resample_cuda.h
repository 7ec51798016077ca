// Contract of resample on CUDA between bindings and kernels; resample.h has the arguments. dtype:
// float32, bfloat16, float16.
#pragma once

#include "ddsm/resample.h"

namespace ddsm {

// Null, or why it refused or what the launch reported. overlaps: the launch may begin while the
// kernel before it in the stream ends.
const char* resample_cuda(const ResampleArgs& args, bool overlaps, void* stream);

}  // namespace ddsm
