// The first convolution of a network: so few channels that all taps together are a step or two of
// the K loop, and that pixels do not start at multiples of 16 bytes.
#pragma once

#include "conv2d_params.h"
#include "ddsm/conv2d_cuda.h"

namespace ddsm {

// Null, or why the head kernel does not serve this call.
const char* head_refusal(const Conv2dCudaForwardArgs& args);

// `params` of the portable path. Prints a line where DDSM_PRINT_CHOICES asks for it.
const char* run_conv_head(const ConvParams& params, const Conv2dCudaForwardArgs& args, Math math,
                          void* stream);

}  // namespace ddsm
