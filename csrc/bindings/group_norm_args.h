// What the CPU and the CUDA binding of sliced_group_norm share: checks, outputs, Args.
#pragma once

#include "ddsm/group_norm.h"
#include "tensor.h"

namespace ddsm::binding {

// What the Python layer has checked already, for callers of the raw op: memory safety depends
// on it.
inline void check_group_norm(const char* op, const Tensor& x, const std::optional<Tensor>& x2,
                             const Tensor& weight, const Tensor& bias, int64_t groups,
                             int64_t c2_offset) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x has ", x.dim(), " dimensions; need 4");
  STD_TORCH_CHECK(weight.dim() == 1 && bias.dim() == 1 && weight.size(0) == bias.size(0) &&
                      weight.scalar_type() == bias.scalar_type(),
                  op, ": weight and bias differ; need [c_max] of one dtype");
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type() ||
                      weight.scalar_type() == ScalarType::Float,
                  op, ": weight's dtype is neither x's nor float32");
  check_same_device(op, x, weight);
  check_same_device(op, x, bias);
  if (x2.has_value()) check_same_device(op, x, *x2);
  check_elements(op, "x", x);
  check_elements(op, "weight", weight);
  if (x2.has_value()) check_elements(op, "x2", *x2);
  const int64_t c_max = weight.size(0);
  int64_t c = x.size(1);
  STD_TORCH_CHECK(c >= 1 && c <= c_max, op, ": x has ", c, " channels, weight ", c_max,
                  "; need 1 <= channels <= ", c_max);
  if (x2.has_value()) {
    STD_TORCH_CHECK(x2->dim() == 4 && x2->scalar_type() == x.scalar_type() &&
                        x2->size(0) == x.size(0) && x2->size(2) == x.size(2) &&
                        x2->size(3) == x.size(3),
                    op, ": x2 does not match x; need the same dtype, N, H and W");
    STD_TORCH_CHECK(x2->size(1) >= 1 && c2_offset >= c && c2_offset <= c_max - x2->size(1),
                    op, ": x2 has ", x2->size(1), " channels at c2_offset ", c2_offset,
                    ", weight ", c_max, "; need ", c, " <= c2_offset <= ", c_max, " - c2");
    c += x2->size(1);
  }
  STD_TORCH_CHECK(groups >= 1 && c % groups == 0, op, ": groups is ", groups,
                  ", the input has ", c, " channels; need groups >= 1 that divide them");
}

inline GroupNormArgs group_norm_args(const char* op, const Tensor& x, const Tensor& weight,
                                     const Tensor& bias, int64_t groups, bool silu) {
  GroupNormArgs args{};
  args.dtype = dtype_of(x, op);
  args.param_dtype = dtype_of(weight, op);
  args.n = x.size(0);
  args.pixels = x.size(2) * x.size(3);
  args.groups = groups;
  args.weight = weight.const_data_ptr();
  args.bias = bias.const_data_ptr();
  args.silu = silu;
  return args;
}

// A parameter [c_max] as the kernels read it: itself unless it is strided.
inline Tensor dense_param(const Tensor& param) {
  return param.is_contiguous() ? param : torch::stable::contiguous(param);
}

// Statistics [N, groups] that belong to x.
inline Tensor empty_statistics(const Tensor& x, int64_t groups) {
  const int64_t sizes[2] = {x.size(0), groups}, strides[2] = {groups, 1};
  return empty_strided(x, statistics_type(x), sizes, strides, 2);
}

// An output like a source; [0] for a source that is not there.
inline Tensor empty_source(const Tensor& like, const std::optional<Tensor>& of) {
  if (of.has_value()) {
    return empty_nhwc(like, of->size(0), of->size(1), of->size(2), of->size(3));
  }
  const int64_t size = 0, stride = 1;
  return empty_strided(like, like.scalar_type(), &size, &stride, 1);
}

inline void add_source(GroupNormArgs& args, const Tensor& x, int64_t param_offset) {
  GroupNormSource& source = args.sources[args.source_count++];
  source.c = x.size(1);
  source.param_offset = param_offset;
  source.x = x.const_data_ptr();
  source.x_pixel_stride = pixel_stride_of(x);
}

inline void check_grad_y(const char* op, const Tensor& grad_y, const Tensor& x, const char* name) {
  check_same_device(op, x, grad_y);
  STD_TORCH_CHECK(grad_y.dim() == 4 && grad_y.scalar_type() == x.scalar_type() &&
                      grad_y.size(0) == x.size(0) && grad_y.size(1) == x.size(1) &&
                      grad_y.size(2) == x.size(2) && grad_y.size(3) == x.size(3),
                  op, ": ", name, " does not match its source; need the same dtype and shape");
}

inline void check_statistics(const char* op, const Tensor& statistics, const Tensor& x,
                             int64_t groups) {
  STD_TORCH_CHECK(same_device(statistics, x) && statistics.is_contiguous() &&
                      statistics.dim() == 2 && statistics.size(0) == x.size(0) &&
                      statistics.size(1) == groups &&
                      statistics.scalar_type() == statistics_type(x),
                  op, ": mean or rstd is not what the forward gave");
}

// What the backward checks beyond check_group_norm.
inline void check_backward(const char* op, const Tensor& grad_y,
                           const std::optional<Tensor>& grad_y2, const Tensor& x,
                           const std::optional<Tensor>& x2, const Tensor& mean,
                           const Tensor& rstd, int64_t groups) {
  check_grad_y(op, grad_y, x, "grad_y");
  STD_TORCH_CHECK(x2.has_value() == grad_y2.has_value(), op,
                  ": only one of x2 and grad_y2 is given; need both or none");
  if (x2.has_value()) check_grad_y(op, *grad_y2, *x2, "grad_y2");
  check_statistics(op, mean, x, groups);
  check_statistics(op, rstd, x, groups);
}

inline void* grad_param_data(const char* op, const std::optional<Tensor>& grad,
                             const Tensor& param) {
  if (!grad.has_value()) return nullptr;
  STD_TORCH_CHECK(same_device(*grad, param) && grad->is_contiguous() && grad->dim() == 1 &&
                      grad->size(0) == param.size(0) &&
                      grad->scalar_type() == param.scalar_type(),
                  op, ": a parameter's gradient does not match it; need a contiguous [c_max] of "
                  "its dtype");
  return grad->mutable_data_ptr();
}

inline void add_source_grads(GroupNormArgs& args, const Tensor& x, int64_t param_offset,
                             const Tensor& grad_y, Tensor& grad_x) {
  add_source(args, x, param_offset);
  GroupNormSource& added = args.sources[args.source_count - 1];
  added.grad_y = grad_y.const_data_ptr();
  added.grad_y_pixel_stride = pixel_stride_of(grad_y);
  added.grad_x = grad_x.mutable_data_ptr();
}

// scale and shift as the kernels read them: rows of adjacent channels, both with one stride.
struct Modulation {
  std::optional<Tensor> scale, shift;

  Modulation(const char* op, const std::optional<Tensor>& scale_any,
             const std::optional<Tensor>& shift_any, const Tensor& x,
             const std::optional<Tensor>& x2) {
    STD_TORCH_CHECK(scale_any.has_value() == shift_any.has_value(), op,
                    ": only one of scale and shift is given; need both or none");
    if (!scale_any.has_value()) return;
    const int64_t channels = x.size(1) + (x2.has_value() ? x2->size(1) : 0);
    check(op, *scale_any, "scale", x, channels);
    check(op, *shift_any, "shift", x, channels);
    const bool adjacent = channels == 1 || (scale_any->stride(1) == 1 && shift_any->stride(1) == 1);
    const bool alike = x.size(0) <= 1 || scale_any->stride(0) == shift_any->stride(0);
    scale = adjacent && alike ? *scale_any : torch::stable::contiguous(*scale_any);
    shift = adjacent && alike ? *shift_any : torch::stable::contiguous(*shift_any);
  }

  void fill(GroupNormArgs& args) const {
    if (!scale.has_value()) return;
    args.scale = scale->const_data_ptr();
    args.shift = shift->const_data_ptr();
    args.modulation_stride = stride_of(*scale, 0);
  }

 private:
  static void check(const char* op, const Tensor& row, const char* name, const Tensor& x,
                    int64_t channels) {
    STD_TORCH_CHECK(same_device(row, x) && row.scalar_type() == x.scalar_type() &&
                        row.dim() == 2 && row.size(0) == x.size(0) && row.size(1) == channels,
                    op, ": ", name, " does not match the sources; need [N, all channels = ",
                    channels, "] of x's dtype and device");
  }
};

// Memory of dL/dscale or dL/dshift; null: not wanted.
inline void* grad_modulation_data(const char* op, const std::optional<Tensor>& grad,
                                  const std::optional<Tensor>& of) {
  if (!grad.has_value()) return nullptr;
  STD_TORCH_CHECK(of.has_value() && same_device(*grad, *of) && grad->is_contiguous() &&
                      grad->dim() == 2 && grad->size(0) == of->size(0) &&
                      grad->size(1) == of->size(1) && grad->scalar_type() == of->scalar_type(),
                  op, ": the gradient of scale or shift does not match it; need a contiguous "
                  "[N, all channels] of its dtype");
  return grad->mutable_data_ptr();
}

}  // namespace ddsm::binding
