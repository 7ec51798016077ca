// What the convolution kernels of sm_90a are launched with.
#pragma once

#include "conv2d_maps.h"
#include "ptx_sm90.cuh"

namespace ddsm {

// What waits for an mbarrier of the kernel.
enum HopperRole : uint32_t { kCopies, kProducts, kTurn, kResidual };

struct HopperConvParams {
  TensorMap image[kMostSources];   // of each source
  TensorMap weight[kMostSources];  // that meets it; of the one source's parts where there are more
  TensorMap y, residual;
  ConvParams conv;
  int32_t parts, phases;  // weights side by side; classes of pixels of an enlarged image
  int32_t corner;         // where a filter's first tap begins, relative to its pixel
  bool copies_y, copies_residual;  // by the maps, in boxes; else by threads
  ptx::Stall* stall;               // memory of the host; null: none could be had
};

// Instantiated in conv2d_sm90_*.cu; `tile` is one of the sm_90a path.
template <class T>
const char* launch_conv_sm90(const HopperConvParams& params, int32_t tile, bool gradient,
                             int32_t multiprocessors, void* stream);

// Encodes the tensor maps and launches one of them (conv2d_sm90.cu).
const char* run_conv_sm90(const ConvParams& params, const ConvGeometry& geometry, int32_t tile,
                          int32_t multiprocessors, void* stream);

}  // namespace ddsm
