// What the convolution kernels of sm_90a are launched with.
#pragma once

#include "conv2d_maps.h"
#include "ptx_sm90.cuh"

namespace ddsm {

struct HopperConvParams {
  TensorMap image[2], weight[2];  // of each source
  ConvParams conv;
  int32_t corner;  // where a filter's first tap begins, relative to its pixel
};

// Instantiated in conv2d_sm90_*.cu; `tile` is one of the sm_90a path.
template <class T>
const char* launch_conv_sm90(const HopperConvParams& params, int32_t tile, bool gradient,
                             int32_t multiprocessors, void* stream);

// Encodes the tensor maps and launches one of them (conv2d_sm90.cu).
const char* run_conv_sm90(const ConvParams& params, const ConvGeometry& geometry, int32_t tile,
                          int32_t multiprocessors, void* stream);

}  // namespace ddsm
