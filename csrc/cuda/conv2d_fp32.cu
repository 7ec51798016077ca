// The convolution and its gradient of x for float32 images: products in tf32, or in full precision.
#include "conv2d_kernels.cuh"

namespace ddsm {

template const char* launch_conv<TensorCores<float>>(const ConvParams&, int32_t, bool, bool,
        void*);
template const char* launch_conv<FmaUnits>(const ConvParams&, int32_t, bool, bool,
        void*);

}  // namespace ddsm
