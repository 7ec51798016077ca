// The convolution with an activation or a gate for Float16 images.
#include "conv2d_kernels.cuh"

namespace ddsm {

template const char* launch_conv_activated<TensorCores<Float16>>(const ConvParams&, int32_t, bool,
                                                             bool, void*);

}  // namespace ddsm
