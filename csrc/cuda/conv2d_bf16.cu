// The convolution and its gradient of x for BFloat16 images.
#include "conv2d_kernels.cuh"

namespace ddsm {

template const char* launch_conv<TensorCores<BFloat16>>(const ConvParams&, int32_t, bool, bool,
        void*);

}  // namespace ddsm
