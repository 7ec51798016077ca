// Contract of sliced_group_norm on CUDA between bindings and kernels; group_norm.h has the
// arguments. dtype: float32, bfloat16, float16.
//
// Everything runs on the current device; `stream` is a cudaStream_t. Functions return null, or what
// a launch reported.
#pragma once

#include <cstdint>

#include "ddsm/group_norm.h"

namespace ddsm {

// Bytes of args.scratch, 16-byte aligned, for either direction; a forward call that is given all
// moments needs none.
int64_t group_norm_cuda_scratch_bytes(const GroupNormArgs& args);

// Bytes of the moments that conv2d_forward_cuda leaves of y, for group_norm_forward_cuda.
int64_t group_norm_cuda_moments_bytes(int64_t n, int64_t pixels, int64_t channels);

// moments[i]: what conv2d_forward_cuda left of source i (Conv2dCudaForwardArgs.moments); null: they
// are computed here, in a pass of their own.
const char* group_norm_forward_cuda(const GroupNormArgs& args, const void* const moments[2],
                                    void* stream);

// Adds to grad_weight and grad_bias in a fixed order.
const char* group_norm_backward_cuda(const GroupNormArgs& args, void* stream);

}  // namespace ddsm
