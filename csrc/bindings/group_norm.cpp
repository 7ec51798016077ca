// sliced_group_norm and its backward on the CPU: checks, allocates, fills Args, calls the kernels.
#include "ddsm/group_norm.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "group_norm_args.h"

namespace {

using namespace ddsm::binding;
using ddsm::GroupNormArgs;

GroupNormArgs cpu_args(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                       int64_t groups, bool silu) {
  const GroupNormArgs args = group_norm_args(op, x, weight, bias, groups, silu);
  STD_TORCH_CHECK(args.dtype != ddsm::DType::kFloat16, op,
                  ": x is float16; the CPU kernel needs float32, bfloat16 or float64");
  return args;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sliced_group_norm(
    const Tensor& x_any, const std::optional<Tensor>& x2_any, const Tensor& weight_any,
    const Tensor& bias_any, int64_t groups, int64_t c2_offset, double eps, bool silu,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift) {
  const char* op = "sliced_group_norm";
  check_group_norm(op, x_any, x2_any, weight_any, bias_any, groups, c2_offset);
  const Modulation modulation = modulation_of(op, scale, shift, x_any, x2_any);
  const Tensor weight = dense_param(weight_any);
  const Tensor bias = dense_param(bias_any);
  const Tensor x = nhwc(x_any);
  const Tensor x2 = x2_any.has_value() ? nhwc(*x2_any) : x;
  Tensor y = empty_source(x, x_any), y2 = empty_source(x, x2_any);
  Tensor mean = empty_statistics(x, groups), rstd = empty_statistics(x, groups);
  GroupNormArgs args = cpu_args(op, x, weight, bias, groups, silu);
  args.eps = eps;
  modulation.fill(args);
  add_source(args, x, 0);
  args.sources[0].y = y.mutable_data_ptr();
  if (x2_any.has_value()) {
    add_source(args, x2, c2_offset);
    args.sources[1].y = y2.mutable_data_ptr();
  }
  args.mean = mean.mutable_data_ptr();
  args.rstd = rstd.mutable_data_ptr();
  Tensor scratch = empty_scratch(ddsm::group_norm_scratch_bytes(args), x);
  args.scratch = scratch.mutable_data_ptr();
  ddsm::group_norm_forward(args);
  return {y, y2, mean, rstd};
}

std::tuple<Tensor, Tensor> sliced_group_norm_backward(
    const Tensor& grad_y_any, const std::optional<Tensor>& grad_y2_any, const Tensor& x_any,
    const std::optional<Tensor>& x2_any, const Tensor& weight_any, const Tensor& bias_any,
    const Tensor& mean, const Tensor& rstd, int64_t groups, int64_t c2_offset, bool silu,
    const std::optional<Tensor>& grad_weight, const std::optional<Tensor>& grad_bias,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
    const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& grad_shift) {
  const char* op = "sliced_group_norm_backward";
  check_group_norm(op, x_any, x2_any, weight_any, bias_any, groups, c2_offset);
  const Modulation modulation = modulation_of(op, scale, shift, x_any, x2_any);
  check_backward(op, grad_y_any, grad_y2_any, x_any, x2_any, mean, rstd, groups);
  const Tensor weight = dense_param(weight_any);
  const Tensor bias = dense_param(bias_any);
  const Tensor x = nhwc(x_any), grad_y = nhwc(grad_y_any);
  const Tensor x2 = x2_any.has_value() ? nhwc(*x2_any) : x;
  const Tensor grad_y2 = grad_y2_any.has_value() ? nhwc(*grad_y2_any) : grad_y;
  Tensor grad_x = empty_source(x, x_any), grad_x2 = empty_source(x, x2_any);
  GroupNormArgs args = cpu_args(op, x, weight, bias, groups, silu);
  add_source_grads(args, x, 0, grad_y, grad_x);
  if (x2_any.has_value()) add_source_grads(args, x2, c2_offset, grad_y2, grad_x2);
  args.mean = const_cast<void*>(mean.const_data_ptr());
  args.rstd = const_cast<void*>(rstd.const_data_ptr());
  args.grad_weight = grad_param_data(op, grad_weight, weight);
  args.grad_bias = grad_param_data(op, grad_bias, bias);
  modulation.fill(args);
  args.grad_scale = grad_modulation_data(op, grad_scale, scale);
  args.grad_shift = grad_modulation_data(op, grad_shift, shift);
  Tensor scratch = empty_scratch(ddsm::group_norm_scratch_bytes(args), x);
  args.scratch = scratch.mutable_data_ptr();
  ddsm::group_norm_backward(args);
  return {grad_x, grad_x2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CPU, m) {
  m.impl("sliced_group_norm", TORCH_BOX(&sliced_group_norm));
  m.impl("sliced_group_norm_backward", TORCH_BOX(&sliced_group_norm_backward));
}
