// sliced_layer_norm and its backward on CUDA: checks, allocates, fills Args, launches on torch's
// current stream.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda_device.h"
#include "ddsm/layer_norm_cuda.h"
#include "layer_norm_args.h"

namespace {

using namespace ddsm::binding;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

void check_dtype(const char* op, const LayerNormCall& call) {
  STD_TORCH_CHECK(call.args.dtype != ddsm::DType::kFloat64, op,
                  ": x is float64; the CUDA kernel needs float32, bfloat16 or float16");
}

Tensor run_forward(const char* op, LayerNormCall& call, const Tensor& x, double eps,
                   bool overlaps) {
  check_dtype(op, call);
  Tensor y = empty_contiguous_like(x);
  call.args.eps = eps;
  call.args.y = y.mutable_data_ptr();
  check_launch(op, ddsm::layer_norm_forward_cuda(call.args, overlaps, stream_of(x)));
  return y;
}

std::tuple<Tensor, Tensor, Tensor> sliced_layer_norm(
    const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
    double eps, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift) {
  const char* op = "sliced_layer_norm";
  const DeviceGuard guard(x.get_device_index());
  LayerNormCall call(op, x, weight, bias, scale, shift);
  Tensor mean = empty_row_statistics(x), rstd = empty_row_statistics(x);
  call.args.mean = mean.mutable_data_ptr();
  call.args.rstd = rstd.mutable_data_ptr();
  return {run_forward(op, call, x, eps, false), mean, rstd};
}

Tensor sliced_layer_norm_apply(const Tensor& x, const std::optional<Tensor>& weight,
                               const std::optional<Tensor>& bias, double eps,
                               const std::optional<Tensor>& scale,
                               const std::optional<Tensor>& shift, bool overlaps) {
  const char* op = "sliced_layer_norm_apply";
  const DeviceGuard guard(x.get_device_index());
  LayerNormCall call(op, x, weight, bias, scale, shift);
  return run_forward(op, call, x, eps, overlaps);
}

Tensor sliced_layer_norm_backward(
    const Tensor& grad_y, const Tensor& x, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& rstd,
    const std::optional<Tensor>& grad_weight, const std::optional<Tensor>& grad_bias,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
    const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& grad_shift) {
  const char* op = "sliced_layer_norm_backward";
  const DeviceGuard guard(x.get_device_index());
  LayerNormCall call(op, x, weight, bias, scale, shift, grad_y);
  check_dtype(op, call);
  call.take_statistics(op, mean, rstd);
  call.take_gradients(op, grad_weight, grad_bias, grad_scale, grad_shift);
  Tensor grad_x = empty_contiguous_like(x);
  call.args.grad_x = grad_x.mutable_data_ptr();
  Tensor scratch = empty_scratch(ddsm::layer_norm_cuda_scratch_bytes(call.args), x);
  call.args.scratch = scratch.mutable_data_ptr();
  check_launch(op, ddsm::layer_norm_backward_cuda(call.args, stream_of(x)));
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sliced_layer_norm", TORCH_BOX(&sliced_layer_norm));
  m.impl("sliced_layer_norm_apply", TORCH_BOX(&sliced_layer_norm_apply));
  m.impl("sliced_layer_norm_backward", TORCH_BOX(&sliced_layer_norm_backward));
}
