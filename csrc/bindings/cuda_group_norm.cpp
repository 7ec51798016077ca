// sliced_group_norm and its backward on CUDA: checks, allocates, fills Args, launches on torch's
// current stream.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda_device.h"
#include "ddsm/group_norm_cuda.h"
#include "group_norm_args.h"

namespace {

using namespace ddsm::binding;
using ddsm::GroupNormArgs;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

GroupNormArgs cuda_args(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t groups,
                        bool silu) {
  const GroupNormArgs args = group_norm_args(x, weight, bias, groups, silu);
  STD_TORCH_CHECK(args.dtype != ddsm::DType::kFloat64,
                  "sliced_group_norm: x is float64; the CUDA kernel needs float32, bfloat16 or "
                  "float16");
  return args;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sliced_group_norm(
    const Tensor& x_any, const std::optional<Tensor>& x2_any, const Tensor& weight_any,
    const Tensor& bias_any, int64_t groups, int64_t c2_offset, double eps, bool silu) {
  check_group_norm(x_any, x2_any, weight_any, bias_any, groups, c2_offset);
  const DeviceGuard guard(x_any.get_device_index());
  const Tensor weight = dense_param(weight_any), bias = dense_param(bias_any);
  const Tensor x = nhwc(x_any), x2 = x2_any.has_value() ? nhwc(*x2_any) : x;
  Tensor y = empty_source(x, x_any), y2 = empty_source(x, x2_any);
  Tensor mean = empty_statistics(x, groups), rstd = empty_statistics(x, groups);
  GroupNormArgs args = cuda_args(x, weight, bias, groups, silu);
  args.eps = eps;
  add_source(args, x, 0);
  args.sources[0].y = y.mutable_data_ptr();
  if (x2_any.has_value()) {
    add_source(args, x2, c2_offset);
    args.sources[1].y = y2.mutable_data_ptr();
  }
  args.mean = mean.mutable_data_ptr();
  args.rstd = rstd.mutable_data_ptr();
  if (args.n == 0 || args.pixels == 0) return {y, y2, mean, rstd};
  Tensor scratch = empty_scratch(ddsm::group_norm_cuda_scratch_bytes(args), x);
  args.scratch = scratch.mutable_data_ptr();
  const void* const moments[2] = {nullptr, nullptr};
  check_launch("sliced_group_norm", ddsm::group_norm_forward_cuda(args, moments, stream_of(x)));
  return {y, y2, mean, rstd};
}

std::tuple<Tensor, Tensor> sliced_group_norm_backward(
    const Tensor& grad_y_any, const std::optional<Tensor>& grad_y2_any, const Tensor& x_any,
    const std::optional<Tensor>& x2_any, const Tensor& weight_any, const Tensor& bias_any,
    const Tensor& mean, const Tensor& rstd, int64_t groups, int64_t c2_offset, bool silu,
    const std::optional<Tensor>& grad_weight, const std::optional<Tensor>& grad_bias) {
  check_group_norm(x_any, x2_any, weight_any, bias_any, groups, c2_offset);
  check_backward(grad_y_any, grad_y2_any, x_any, x2_any, mean, rstd, groups);
  const DeviceGuard guard(x_any.get_device_index());
  const Tensor weight = dense_param(weight_any), bias = dense_param(bias_any);
  const Tensor x = nhwc(x_any), grad_y = nhwc(grad_y_any);
  const Tensor x2 = x2_any.has_value() ? nhwc(*x2_any) : x;
  const Tensor grad_y2 = grad_y2_any.has_value() ? nhwc(*grad_y2_any) : grad_y;
  Tensor grad_x = empty_source(x, x_any), grad_x2 = empty_source(x, x2_any);
  GroupNormArgs args = cuda_args(x, weight, bias, groups, silu);
  add_source_grads(args, x, 0, grad_y, grad_x);
  if (x2_any.has_value()) add_source_grads(args, x2, c2_offset, grad_y2, grad_x2);
  args.mean = const_cast<void*>(mean.const_data_ptr());
  args.rstd = const_cast<void*>(rstd.const_data_ptr());
  args.grad_weight = grad_param_data(grad_weight, weight);
  args.grad_bias = grad_param_data(grad_bias, bias);
  if (args.n == 0 || args.pixels == 0) return {grad_x, grad_x2};
  Tensor scratch = empty_scratch(ddsm::group_norm_cuda_scratch_bytes(args), x);
  args.scratch = scratch.mutable_data_ptr();
  check_launch("sliced_group_norm_backward", ddsm::group_norm_backward_cuda(args, stream_of(x)));
  return {grad_x, grad_x2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sliced_group_norm", TORCH_BOX(&sliced_group_norm));
  m.impl("sliced_group_norm_backward", TORCH_BOX(&sliced_group_norm_backward));
}
