// Contract of sliced_layer_norm on CUDA between bindings and kernels; layer_norm.h has the
// arguments. dtype: float32, bfloat16, float16.
//
// Everything runs on the current device; `stream` is a cudaStream_t. Functions return null, or why
// they refused or what a launch reported.
#pragma once

#include <cstdint>

#include "ddsm/layer_norm.h"

namespace ddsm {

// Bytes of args.scratch for the backward, 16-byte aligned; the forward needs none.
int64_t layer_norm_cuda_scratch_bytes(const LayerNormArgs& args);

// overlaps: the launch may begin while the kernel before it in the stream ends.
const char* layer_norm_forward_cuda(const LayerNormArgs& args, bool overlaps, void* stream);

// Sums in a fixed order.
const char* layer_norm_backward_cuda(const LayerNormArgs& args, void* stream);

}  // namespace ddsm
