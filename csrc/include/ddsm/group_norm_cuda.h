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

// Bytes of the moments that conv2d_forward_cuda leaves of y, for group_norm_forward_cuda. Where y's
// pixels are in classes: n * classes and the pixels of a class.
int64_t group_norm_cuda_moments_bytes(int64_t n, int64_t pixels, int64_t channels);

// What conv2d_forward_cuda left of a source (Conv2dCudaForwardArgs.moments): [n, classes, blocks of
// a class's pixels, channels]. data null: nothing, a pass of its own finds them.
struct GroupNormMoments {
  const void* data;
  int64_t classes;  // 1 or 4 (conv2d_forward_cuda_moment_classes), divides the pixels
};

// args.mean and args.rstd may be null: not wanted. down_width: 0, or the sources' width where y
// [n, pixels / 4, c] holds the means of 2x2 pixels of the result. overlaps: the launch may begin
// while the kernel before it in the stream ends.
const char* group_norm_forward_cuda(const GroupNormArgs& args, const GroupNormMoments moments[2],
                                    int64_t down_width, bool overlaps, void* stream);

// Sums in a fixed order.
const char* group_norm_backward_cuda(const GroupNormArgs& args, void* stream);

}  // namespace ddsm
