// The gradients of the convolution's weight and bias for float32 images: products in tf32, or in
// full precision.
#include "conv2d_grad_weight_kernels.cuh"

namespace ddsm {

template const char* launch_grad_weight<TensorCores<float>>(const GradWeightParams&, int32_t,
        bool, void*);
template const char* launch_grad_weight<FmaUnits>(const GradWeightParams&, int32_t,
        bool, void*);

}  // namespace ddsm
