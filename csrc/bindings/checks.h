// What the bindings of sliced_conv2d and sliced_linear share on every device. The checks repeat the
// Python layer's as far as memory safety of the raw ops needs them.
#pragma once

#include "tensor.h"

namespace ddsm::binding {

// Dtypes that the CPU kernels take beside each other.
inline void check_cpu_dtypes(const char* op, const Tensor& x, const Tensor& weight) {
  const DType x_dtype = dtype_of(x, op), w_dtype = dtype_of(weight, op);
  const bool mixed = x_dtype == DType::kBFloat16 && w_dtype == DType::kFloat32;
  STD_TORCH_CHECK(x_dtype != DType::kFloat16 && (x_dtype == w_dtype || mixed), op,
                  ": unsupported dtypes; need equal float32, bfloat16 or float64, or a float32 "
                  "weight with bfloat16 x");
}

// Whether a kernel found memory for its workspace.
inline void check_memory(const char* op, bool enough) {
  STD_TORCH_CHECK(enough, op, ": not enough memory for the workspace");
}

inline void check_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& weight) {
  if (!bias.has_value()) return;
  check_same_device(op, weight, *bias);
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0) &&
                      bias->scalar_type() == weight.scalar_type(),
                  op, ": bias is not [c_out_max] of weight's dtype");
}

inline void check_grad_bias(const char* op, const std::optional<Tensor>& grad_bias,
                            const Tensor& grad_weight) {
  check_bias(op, grad_bias, grad_weight);
  STD_TORCH_CHECK(!grad_bias.has_value() || grad_bias->is_contiguous(), op,
                  ": grad_bias is not contiguous");
}

inline void check_c_out(const char* op, int64_t c_out, const Tensor& weight) {
  STD_TORCH_CHECK(c_out >= 1 && c_out <= weight.size(0), op, ": c_out is ", c_out,
                  ", weight has ", weight.size(0), " output channels; need 1 <= c_out <= ",
                  weight.size(0));
}

// `value` made contiguous, or anything that keeps the memory of nothing.
inline Tensor contiguous_or(const std::optional<Tensor>& value, const Tensor& fallback) {
  return value.has_value() ? torch::stable::contiguous(*value) : fallback;
}

// Memory of a gradient that a kernel adds to; null: not wanted.
inline void* grad_data_or_null(const std::optional<Tensor>& grad) {
  return grad.has_value() ? grad->mutable_data_ptr() : nullptr;
}

}  // namespace ddsm::binding
