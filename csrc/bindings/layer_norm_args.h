// What the CPU and the CUDA binding of sliced_layer_norm share: checks, outputs, Args.
#pragma once

#include <vector>

#include "ddsm/layer_norm.h"
#include "norm_args.h"

namespace ddsm::binding {

// Statistics of the rows of x.
inline Tensor empty_row_statistics(const Tensor& x) {
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.pop_back();
  return empty_contiguous(x, statistics_type(x), sizes);
}

// x [N, ..., c] as the kernels read it, rows of adjacent channels: x itself where those of an image
// are evenly spaced, else a contiguous copy.
struct ImageRows {
  Tensor tensor;
  int64_t rows = 1;  // of an image
  int64_t image_stride, row_stride;

  explicit ImageRows(const Tensor& x)
      : tensor(row_stride_of(x) >= 0 ? x : torch::stable::contiguous(x)),
        image_stride(stride_of(tensor, 0)),
        row_stride(row_stride_of(tensor)) {
    for (int64_t d = 1; d < x.dim() - 1; ++d) rows *= x.size(d);
  }

 private:
  // Elements between the rows of an image, -1 where there is no such number.
  static int64_t row_stride_of(const Tensor& x) {
    const int64_t last = x.dim() - 1;
    if (x.size(last) > 1 && x.stride(last) != 1) return -1;
    int64_t stride = 0, expected = -1;
    for (int64_t d = last - 1; d > 0; --d) {
      if (x.size(d) == 1) continue;
      if (expected < 0) stride = x.stride(d);
      else if (x.stride(d) != expected) return -1;
      expected = x.stride(d) * x.size(d);
    }
    return stride;
  }
};

// A call's inputs as the kernels read them, and the arguments that they fill. The checks repeat the
// Python layer's as far as memory safety of the raw ops needs them.
struct LayerNormCall {
  ImageRows x;
  std::optional<ImageRows> grad_y;  // of a backward
  std::optional<Tensor> weight, bias;
  Modulation modulation;
  LayerNormArgs args{};

  LayerNormCall(const char* op, const Tensor& x_any, const std::optional<Tensor>& weight_any,
                const std::optional<Tensor>& bias_any, const std::optional<Tensor>& scale,
                const std::optional<Tensor>& shift,
                const std::optional<Tensor>& grad_y_any = std::nullopt)
      : x(checked(op, x_any, weight_any, bias_any)),
        modulation(op, scale, shift, x_any, x_any.size(x_any.dim() - 1)) {
    args.dtype = args.param_dtype = args.modulation_dtype = dtype_of(x_any, op);
    const bool apart = modulation.scale.has_value();  // images differ
    args.images = apart ? x_any.size(0) : 1;
    args.rows = apart ? x.rows : x_any.size(0) * x.rows;
    args.channels = x_any.size(x_any.dim() - 1);
    args.run = x.rows;
    args.x = x.tensor.const_data_ptr();
    args.x_run_stride = x.image_stride;
    args.x_row_stride = x.row_stride;
    if (grad_y_any.has_value()) {
      grad_y.emplace(checked_grad_y(op, *grad_y_any, x_any));
      args.grad_y = grad_y->tensor.const_data_ptr();
      args.grad_y_run_stride = grad_y->image_stride;
      args.grad_y_row_stride = grad_y->row_stride;
    }
    if (weight_any.has_value()) {
      weight = dense_param(*weight_any);
      bias = dense_param(*bias_any);
      args.param_dtype = dtype_of(*weight, op);
      args.weight = weight->const_data_ptr();
      args.bias = bias->const_data_ptr();
    }
    modulation.fill(args);
  }

  void take_gradients(const char* op, const std::optional<Tensor>& grad_weight,
                      const std::optional<Tensor>& grad_bias,
                      const std::optional<Tensor>& grad_scale,
                      const std::optional<Tensor>& grad_shift) {
    STD_TORCH_CHECK(weight.has_value() || !(grad_weight.has_value() || grad_bias.has_value()), op,
                    ": a parameter's gradient is given but weight is not; need both or none");
    args.grad_weight = weight.has_value() ? grad_param_data(op, grad_weight, *weight) : nullptr;
    args.grad_bias = weight.has_value() ? grad_param_data(op, grad_bias, *weight) : nullptr;
    args.grad_scale = grad_modulation_data(op, grad_scale, modulation.scale);
    args.grad_shift = grad_modulation_data(op, grad_shift, modulation.shift);
  }

  void take_statistics(const char* op, const Tensor& mean, const Tensor& rstd) {
    for (const Tensor* of : {&mean, &rstd}) {
      std::vector<int64_t> sizes = sizes_of(x.tensor);
      sizes.pop_back();
      STD_TORCH_CHECK(same_device(*of, x.tensor) && of->is_contiguous() && sizes_of(*of) == sizes &&
                          of->scalar_type() == statistics_type(x.tensor),
                      op, ": mean or rstd is not what the forward gave");
    }
    args.mean = const_cast<void*>(mean.const_data_ptr());
    args.rstd = const_cast<void*>(rstd.const_data_ptr());
  }

 private:
  static const Tensor& checked(const char* op, const Tensor& x,
                               const std::optional<Tensor>& weight,
                               const std::optional<Tensor>& bias) {
    STD_TORCH_CHECK(x.dim() >= 2, op, ": x has ", x.dim(), " dimensions; need at least 2");
    const int64_t c = x.size(x.dim() - 1);
    STD_TORCH_CHECK(c >= 1, op, ": x has no channels; need at least 1");
    check_elements(op, "x", x);
    STD_TORCH_CHECK(weight.has_value() == bias.has_value(), op,
                    ": only one of weight and bias is given; need both or none");
    if (!weight.has_value()) return x;
    STD_TORCH_CHECK(weight->dim() == 1 && bias->dim() == 1 && weight->size(0) == bias->size(0) &&
                        weight->scalar_type() == bias->scalar_type(),
                    op, ": weight and bias differ; need [c_max] of one dtype");
    STD_TORCH_CHECK(weight->scalar_type() == x.scalar_type() ||
                        weight->scalar_type() == ScalarType::Float,
                    op, ": weight's dtype is neither x's nor float32");
    check_same_device(op, x, *weight);
    check_same_device(op, x, *bias);
    check_elements(op, "weight", *weight);
    STD_TORCH_CHECK(c <= weight->size(0), op, ": x has ", c, " channels, weight ", weight->size(0),
                    "; need 1 <= channels <= ", weight->size(0));
    return x;
  }

  static const Tensor& checked_grad_y(const char* op, const Tensor& grad_y, const Tensor& x) {
    check_same_device(op, x, grad_y);
    STD_TORCH_CHECK(sizes_of(grad_y) == sizes_of(x) && grad_y.scalar_type() == x.scalar_type(), op,
                    ": grad_y does not match x; need the same dtype and shape");
    return grad_y;
  }
};

}  // namespace ddsm::binding
