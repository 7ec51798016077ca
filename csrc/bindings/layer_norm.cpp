// sliced_layer_norm and its backward on the CPU: checks, allocates, fills Args, calls the kernels.
#include "ddsm/layer_norm.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "layer_norm_args.h"

namespace {

using namespace ddsm::binding;

void check_dtype(const char* op, const LayerNormCall& call) {
  STD_TORCH_CHECK(call.args.dtype != ddsm::DType::kFloat16, op,
                  ": x is float16; the CPU kernel needs float32, bfloat16 or float64");
}

std::tuple<Tensor, Tensor, Tensor> sliced_layer_norm(
    const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
    double eps, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift) {
  const char* op = "sliced_layer_norm";
  LayerNormCall call(op, x, weight, bias, scale, shift);
  check_dtype(op, call);
  Tensor y = empty_contiguous_like(x);
  Tensor mean = empty_row_statistics(x), rstd = empty_row_statistics(x);
  call.args.eps = eps;
  call.args.y = y.mutable_data_ptr();
  call.args.mean = mean.mutable_data_ptr();
  call.args.rstd = rstd.mutable_data_ptr();
  Tensor scratch = empty_scratch(ddsm::layer_norm_scratch_bytes(call.args), x);
  call.args.scratch = scratch.mutable_data_ptr();
  ddsm::layer_norm_forward(call.args);
  return {y, mean, rstd};
}

Tensor sliced_layer_norm_backward(
    const Tensor& grad_y, const Tensor& x, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& rstd,
    const std::optional<Tensor>& grad_weight, const std::optional<Tensor>& grad_bias,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
    const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& grad_shift) {
  const char* op = "sliced_layer_norm_backward";
  LayerNormCall call(op, x, weight, bias, scale, shift, grad_y);
  check_dtype(op, call);
  call.take_statistics(op, mean, rstd);
  call.take_gradients(op, grad_weight, grad_bias, grad_scale, grad_shift);
  Tensor grad_x = empty_contiguous_like(x);
  call.args.grad_x = grad_x.mutable_data_ptr();
  Tensor scratch = empty_scratch(ddsm::layer_norm_scratch_bytes(call.args), x);
  call.args.scratch = scratch.mutable_data_ptr();
  ddsm::layer_norm_backward(call.args);
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CPU, m) {
  m.impl("sliced_layer_norm", TORCH_BOX(&sliced_layer_norm));
  m.impl("sliced_layer_norm_backward", TORCH_BOX(&sliced_layer_norm_backward));
}
