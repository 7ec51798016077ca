// What the CPU and the CUDA binding of sliced_group_norm share: checks, outputs, Args.
#pragma once

#include "ddsm/group_norm.h"
#include "norm_args.h"

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

// Statistics [N, groups] that belong to x.
inline Tensor empty_statistics(const Tensor& x, int64_t groups) {
  return empty_contiguous(x, statistics_type(x), {x.size(0), groups});
}

// An output like a source; [0] for a source that is not there.
inline Tensor empty_source(const Tensor& like, const std::optional<Tensor>& of) {
  if (of.has_value()) {
    return empty_nhwc(like, of->size(0), of->size(1), of->size(2), of->size(3));
  }
  return empty_contiguous(like, like.scalar_type(), {0});
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

inline void add_source_grads(GroupNormArgs& args, const Tensor& x, int64_t param_offset,
                             const Tensor& grad_y, Tensor& grad_x) {
  add_source(args, x, param_offset);
  GroupNormSource& added = args.sources[args.source_count - 1];
  added.grad_y = grad_y.const_data_ptr();
  added.grad_y_pixel_stride = pixel_stride_of(grad_y);
  added.grad_x = grad_x.mutable_data_ptr();
}

// scale and shift of both sources' channels as one.
inline Modulation modulation_of(const char* op, const std::optional<Tensor>& scale,
                                const std::optional<Tensor>& shift, const Tensor& x,
                                const std::optional<Tensor>& x2) {
  return {op, scale, shift, x, x.size(1) + (x2.has_value() ? x2->size(1) : 0)};
}

}  // namespace ddsm::binding
