// sliced_group_norm and its backward on the CPU: checks, allocates, fills Args, calls the kernels.
#include "ddsm/group_norm.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "group_norm_args.h"

namespace {

using ddsm::GroupNormArgs;
using ddsm::GroupNormSource;
using ddsm::binding::add_source;
using ddsm::binding::check_group_norm;
using ddsm::binding::empty_scratch;
using ddsm::binding::empty_source;
using ddsm::binding::empty_statistics;
using ddsm::binding::Tensor;

GroupNormArgs cpu_args(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t groups,
                       bool silu) {
  const GroupNormArgs args = ddsm::binding::group_norm_args(x, weight, bias, groups, silu);
  STD_TORCH_CHECK(args.dtype != ddsm::DType::kFloat16,
                  "sliced_group_norm: x is float16; the CPU kernel needs float32, bfloat16 or "
                  "float64");
  return args;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sliced_group_norm(
    const Tensor& x_any, const std::optional<Tensor>& x2_any, const Tensor& weight_any,
    const Tensor& bias_any, int64_t groups, int64_t c2_offset, double eps, bool silu) {
  check_group_norm(x_any, x2_any, weight_any, bias_any, groups, c2_offset);
  const Tensor weight = ddsm::binding::dense_param(weight_any);
  const Tensor bias = ddsm::binding::dense_param(bias_any);
  const Tensor x = ddsm::binding::nhwc(x_any);
  const Tensor x2 = x2_any.has_value() ? ddsm::binding::nhwc(*x2_any) : x;
  Tensor y = empty_source(x, x_any), y2 = empty_source(x, x2_any);
  Tensor mean = empty_statistics(x, groups), rstd = empty_statistics(x, groups);
  GroupNormArgs args = cpu_args(x, weight, bias, groups, silu);
  args.eps = eps;
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

void check_backward(const Tensor& grad_y, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(grad_y.dim() == 4 && grad_y.scalar_type() == x.scalar_type() &&
                      grad_y.size(0) == x.size(0) && grad_y.size(1) == x.size(1) &&
                      grad_y.size(2) == x.size(2) && grad_y.size(3) == x.size(3),
                  "sliced_group_norm_backward: ", name, " does not match its source; need the "
                  "same dtype and shape");
}

void check_statistics(const Tensor& statistics, const Tensor& x, int64_t groups) {
  STD_TORCH_CHECK(statistics.is_contiguous() && statistics.dim() == 2 &&
                      statistics.size(0) == x.size(0) && statistics.size(1) == groups &&
                      statistics.scalar_type() == ddsm::binding::statistics_type(x),
                  "sliced_group_norm_backward: mean or rstd is not what the forward gave");
}

void* grad_param_data(const std::optional<Tensor>& grad, const Tensor& param) {
  if (!grad.has_value()) return nullptr;
  STD_TORCH_CHECK(grad->is_contiguous() && grad->dim() == 1 && grad->size(0) == param.size(0) &&
                      grad->scalar_type() == param.scalar_type(),
                  "sliced_group_norm_backward: a parameter's gradient does not match it; need a "
                  "contiguous [c_max] of its dtype");
  return grad->mutable_data_ptr();
}

std::tuple<Tensor, Tensor> sliced_group_norm_backward(
    const Tensor& grad_y_any, const std::optional<Tensor>& grad_y2_any, const Tensor& x_any,
    const std::optional<Tensor>& x2_any, const Tensor& weight_any, const Tensor& bias_any,
    const Tensor& mean, const Tensor& rstd, int64_t groups, int64_t c2_offset, bool silu,
    const std::optional<Tensor>& grad_weight, const std::optional<Tensor>& grad_bias) {
  check_group_norm(x_any, x2_any, weight_any, bias_any, groups, c2_offset);
  check_backward(grad_y_any, x_any, "grad_y");
  const Tensor weight = ddsm::binding::dense_param(weight_any);
  const Tensor bias = ddsm::binding::dense_param(bias_any);
  STD_TORCH_CHECK(x2_any.has_value() == grad_y2_any.has_value(),
                  "sliced_group_norm_backward: only one of x2 and grad_y2 is given; need both or "
                  "none");
  if (x2_any.has_value()) check_backward(*grad_y2_any, *x2_any, "grad_y2");
  check_statistics(mean, x_any, groups);
  check_statistics(rstd, x_any, groups);
  const Tensor x = ddsm::binding::nhwc(x_any), grad_y = ddsm::binding::nhwc(grad_y_any);
  const Tensor x2 = x2_any.has_value() ? ddsm::binding::nhwc(*x2_any) : x;
  const Tensor grad_y2 = grad_y2_any.has_value() ? ddsm::binding::nhwc(*grad_y2_any) : grad_y;
  Tensor grad_x = empty_source(x, x_any), grad_x2 = empty_source(x, x2_any);
  GroupNormArgs args = cpu_args(x, weight, bias, groups, silu);
  auto add_grads = [&](const Tensor& source, int64_t offset, const Tensor& grad, Tensor& result) {
    add_source(args, source, offset);
    GroupNormSource& added = args.sources[args.source_count - 1];
    added.grad_y = grad.const_data_ptr();
    added.grad_y_pixel_stride = ddsm::binding::pixel_stride_of(grad);
    added.grad_x = result.mutable_data_ptr();
  };
  add_grads(x, 0, grad_y, grad_x);
  if (x2_any.has_value()) add_grads(x2, c2_offset, grad_y2, grad_x2);
  args.mean = const_cast<void*>(mean.const_data_ptr());
  args.rstd = const_cast<void*>(rstd.const_data_ptr());
  args.grad_weight = grad_param_data(grad_weight, weight);
  args.grad_bias = grad_param_data(grad_bias, bias);
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
