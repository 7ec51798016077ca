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

GroupNormArgs cuda_args(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        int64_t groups, bool silu) {
  const GroupNormArgs args = group_norm_args(op, x, weight, bias, groups, silu);
  STD_TORCH_CHECK(args.dtype != ddsm::DType::kFloat64, op,
                  ": x is float64; the CUDA kernel needs float32, bfloat16 or float16");
  return args;
}

using Moments = ddsm::GroupNormMoments;

// An output like a source, or of its 2x2 pixels' means; [0] for a source that is not there.
Tensor empty_output(const Tensor& like, const std::optional<Tensor>& of, bool down) {
  if (!down || !of.has_value()) return empty_source(like, of);
  return empty_nhwc(like, of->size(0), of->size(1), of->size(2) / 2, of->size(3) / 2);
}

// A forward call's tensors, checked before, and its arguments.
struct Forward {
  Tensor weight, bias, x, x2, y, y2, mean, rstd;
  Modulation modulation;
  int64_t down_width;
  GroupNormArgs args;

  Forward(const char* op, const Tensor& x_any, const std::optional<Tensor>& x2_any,
          const Tensor& weight_any, const Tensor& bias_any, int64_t groups, int64_t c2_offset,
          double eps, bool silu, const Modulation& modulated, bool down, bool with_statistics)
      : weight(dense_param(weight_any)),
        bias(dense_param(bias_any)),
        x(nhwc(x_any)),
        x2(x2_any.has_value() ? nhwc(*x2_any) : x),
        y(empty_output(x, x_any, down)),
        y2(empty_output(x, x2_any, down)),
        mean(empty_statistics(x, with_statistics ? groups : 0)),
        rstd(empty_statistics(x, with_statistics ? groups : 0)),
        modulation(modulated),
        down_width(down ? x_any.size(3) : 0),
        args(cuda_args(op, x, weight, bias, groups, silu)) {
    args.eps = eps;
    modulation.fill(args);
    add_source(args, x, 0);
    args.sources[0].y = y.mutable_data_ptr();
    if (x2_any.has_value()) {
      add_source(args, x2, c2_offset);
      args.sources[1].y = y2.mutable_data_ptr();
    }
    if (!with_statistics) return;
    args.mean = mean.mutable_data_ptr();
    args.rstd = rstd.mutable_data_ptr();
  }

  void run(const char* op, const Moments moments[2], bool overlaps) {
    if (args.n == 0 || args.pixels == 0) return;
    const bool all_given = moments[0].data && (args.source_count < 2 || moments[1].data);
    Tensor scratch = empty_scratch(all_given ? 0 : ddsm::group_norm_cuda_scratch_bytes(args), x);
    args.scratch = scratch.mutable_data_ptr();
    check_launch(op, ddsm::group_norm_forward_cuda(args, moments, down_width, overlaps,
                                                   stream_of(x)));
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> sliced_group_norm(
    const Tensor& x, const std::optional<Tensor>& x2, const Tensor& weight, const Tensor& bias,
    int64_t groups, int64_t c2_offset, double eps, bool silu, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift) {
  const char* op = "sliced_group_norm";
  check_group_norm(op, x, x2, weight, bias, groups, c2_offset);
  const Modulation modulation = modulation_of(op, scale, shift, x, x2);
  const DeviceGuard guard(x.get_device_index());
  Forward forward(op, x, x2, weight, bias, groups, c2_offset, eps, silu, modulation, false, true);
  const Moments moments[2] = {};
  forward.run(op, moments, false);
  return {forward.y, forward.y2, forward.mean, forward.rstd};
}

// What sliced_conv2d_fused left of a source, [N, classes, blocks, 8 * channels].
Moments moments_of(const char* op, const std::optional<Tensor>& moments, const Tensor& source) {
  if (!moments.has_value()) return {};
  const int64_t pixels = source.size(2) * source.size(3);
  const int64_t classes = moments->dim() == 4 ? moments->size(1) : 0;
  const bool divided = classes == 1 || (classes == 4 && pixels % 4 == 0);
  const int64_t bytes = divided ? ddsm::group_norm_cuda_moments_bytes(
                                      source.size(0) * classes, pixels / classes, source.size(1))
                                : -1;
  STD_TORCH_CHECK(same_device(*moments, source) && moments->scalar_type() == ScalarType::Byte &&
                      moments->is_contiguous() && moments->numel() == bytes &&
                      moments->size(0) == source.size(0) &&
                      moments->size(3) == 8 * source.size(1),
                  op, ": moments are not those of their source");
  return {moments->const_data_ptr(), classes};
}

std::tuple<Tensor, Tensor> sliced_group_norm_apply(
    const Tensor& x_any, const std::optional<Tensor>& x2_any, const Tensor& weight_any,
    const Tensor& bias_any, int64_t groups, int64_t c2_offset, double eps, bool silu,
    const std::optional<Tensor>& moments, const std::optional<Tensor>& moments2,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, bool down,
    bool overlaps) {
  const char* op = "sliced_group_norm_apply";
  check_group_norm(op, x_any, x2_any, weight_any, bias_any, groups, c2_offset);
  STD_TORCH_CHECK(x2_any.has_value() || !moments2.has_value(), op,
                  ": moments2 are given but x2 is not; need both or none");
  STD_TORCH_CHECK(!down || (x_any.size(2) % 2 == 0 && x_any.size(3) % 2 == 0), op, ": x has ",
                  x_any.size(2), "x", x_any.size(3), " pixels; need an even height and width");
  const Modulation modulation = modulation_of(op, scale, shift, x_any, x2_any);
  const Moments given[2] = {moments_of(op, moments, x_any),
                            x2_any.has_value() ? moments_of(op, moments2, *x2_any) : Moments{}};
  const DeviceGuard guard(x_any.get_device_index());
  Forward forward(op, x_any, x2_any, weight_any, bias_any, groups, c2_offset, eps, silu, modulation,
                  down, false);
  forward.run(op, given, overlaps);
  return {forward.y, forward.y2};
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
  check_backward(op, grad_y_any, grad_y2_any, x_any, x2_any, mean, rstd, groups);
  const Modulation modulation = modulation_of(op, scale, shift, x_any, x2_any);
  const DeviceGuard guard(x_any.get_device_index());
  const Tensor weight = dense_param(weight_any), bias = dense_param(bias_any);
  const Tensor x = nhwc(x_any), grad_y = nhwc(grad_y_any);
  const Tensor x2 = x2_any.has_value() ? nhwc(*x2_any) : x;
  const Tensor grad_y2 = grad_y2_any.has_value() ? nhwc(*grad_y2_any) : grad_y;
  Tensor grad_x = empty_source(x, x_any), grad_x2 = empty_source(x, x2_any);
  GroupNormArgs args = cuda_args(op, x, weight, bias, groups, silu);
  add_source_grads(args, x, 0, grad_y, grad_x);
  if (x2_any.has_value()) add_source_grads(args, x2, c2_offset, grad_y2, grad_x2);
  args.mean = const_cast<void*>(mean.const_data_ptr());
  args.rstd = const_cast<void*>(rstd.const_data_ptr());
  args.grad_weight = grad_param_data(op, grad_weight, weight);
  args.grad_bias = grad_param_data(op, grad_bias, bias);
  modulation.fill(args);
  args.grad_scale = grad_modulation_data(op, grad_scale, scale);
  args.grad_shift = grad_modulation_data(op, grad_shift, shift);
  if (args.n == 0) return {grad_x, grad_x2};
  Tensor scratch = empty_scratch(ddsm::group_norm_cuda_scratch_bytes(args), x);
  args.scratch = scratch.mutable_data_ptr();
  check_launch(op, ddsm::group_norm_backward_cuda(args, stream_of(x)));
  return {grad_x, grad_x2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sliced_group_norm", TORCH_BOX(&sliced_group_norm));
  m.impl("sliced_group_norm_apply", TORCH_BOX(&sliced_group_norm_apply));
  m.impl("sliced_group_norm_backward", TORCH_BOX(&sliced_group_norm_backward));
}
