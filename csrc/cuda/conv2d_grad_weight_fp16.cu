// The gradients of the convolution's weight and bias for Float16 images.
#include "conv2d_grad_weight_kernels.cuh"

namespace ddsm {

template const char* launch_grad_weight<TensorCores<Float16>>(const GradWeightParams&, int32_t,
        bool, void*);

}  // namespace ddsm
