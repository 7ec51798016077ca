// The convolution with an activation or a gate for float images: as tf32, and in full precision.
#include "conv2d_kernels.cuh"

namespace ddsm {

template const char* launch_conv_activated<TensorCores<float>>(const ConvParams&, int32_t, bool,
                                                               bool, void*);
template const char* launch_conv_activated<FmaUnits>(const ConvParams&, int32_t, bool, bool, void*);

}  // namespace ddsm
