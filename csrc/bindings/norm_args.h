// What the bindings of both norms share: parameters, scale and shift, memory of their gradients.
#pragma once

#include "tensor.h"

namespace ddsm::binding {

// A parameter [c_max] as the kernels read it: itself unless it is strided.
inline Tensor dense_param(const Tensor& param) {
  return param.is_contiguous() ? param : torch::stable::contiguous(param);
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

// scale and shift as the kernels read them: rows of adjacent channels, both with one stride.
struct Modulation {
  std::optional<Tensor> scale, shift;

  // Of the input x, whose images have so many channels.
  Modulation(const char* op, const std::optional<Tensor>& scale_any,
             const std::optional<Tensor>& shift_any, const Tensor& x, int64_t channels) {
    STD_TORCH_CHECK(scale_any.has_value() == shift_any.has_value(), op,
                    ": only one of scale and shift is given; need both or none");
    if (!scale_any.has_value()) return;
    check(op, *scale_any, "scale", x, channels);
    check(op, *shift_any, "shift", x, channels);
    const bool adjacent = channels == 1 || (scale_any->stride(1) == 1 && shift_any->stride(1) == 1);
    const bool alike = x.size(0) <= 1 || scale_any->stride(0) == shift_any->stride(0);
    scale = adjacent && alike ? *scale_any : torch::stable::contiguous(*scale_any);
    shift = adjacent && alike ? *shift_any : torch::stable::contiguous(*shift_any);
  }

  template <class Args>
  void fill(Args& args) const {
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
                    op, ": ", name, " does not match the input; need [N, channels = ", channels,
                    "] of x's dtype and device");
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
                  "[N, channels] of its dtype");
  return grad->mutable_data_ptr();
}

}  // namespace ddsm::binding
