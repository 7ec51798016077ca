// The convolution with an activation or a gate on sm_90a for Float16 images.
#include "conv2d_sm90_kernels.cuh"

namespace ddsm {

template const char* launch_conv_sm90_activated<Float16>(const HopperConvParams&, int32_t, bool,
                                                     int32_t, void*);

}  // namespace ddsm
