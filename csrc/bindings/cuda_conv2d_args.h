// What the CUDA bindings of sliced_conv2d and sliced_linear share: operand checks and views.
#pragma once

#include "cuda_device.h"
#include "ddsm/conv2d_cuda.h"

namespace ddsm::binding {

// These repeat the Python layer's checks as far as memory safety of the raw ops needs them.
inline void check_operands(const char* op, const Tensor& x, const Tensor& weight) {
  check_same_device(op, x, weight);
  const DType x_dtype = dtype_of(x, op), w_dtype = dtype_of(weight, op);
  const bool mixed = x_dtype != DType::kFloat64 && w_dtype == DType::kFloat32;
  STD_TORCH_CHECK(x_dtype != DType::kFloat64 && (x_dtype == w_dtype || mixed), op,
                  ": unsupported dtypes; CUDA kernels need equal float32, bfloat16 or float16, or "
                  "a float32 weight with a 16-bit x");
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
  STD_TORCH_CHECK(!grad_bias.has_value() || grad_bias->stride(0) == 1, op,
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

// Runs `launch` with a workspace of the size that `bytes` says, on the current stream.
template <class Args>
void run_conv2d(const char* op, Args& args, const Tensor& like, int64_t (*bytes)(const Args&),
                const char* (*launch)(const Args&, void*)) {
  Tensor workspace = empty_scratch(bytes(args), like);
  args.options.workspace = workspace.mutable_data_ptr();
  check_launch(op, launch(args, stream_of(like)));
}

}  // namespace ddsm::binding
