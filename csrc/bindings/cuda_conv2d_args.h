// What the CUDA bindings of sliced_conv2d and sliced_linear share: their launch.
#pragma once

#include "cuda_device.h"
#include "ddsm/conv2d_cuda.h"
#include "checks.h"

namespace ddsm::binding {

inline void check_dtypes(const char* op, const Tensor& x, const Tensor& weight) {
  const DType x_dtype = dtype_of(x, op), w_dtype = dtype_of(weight, op);
  const bool mixed = x_dtype != DType::kFloat64 && w_dtype == DType::kFloat32;
  STD_TORCH_CHECK(x_dtype != DType::kFloat64 && (x_dtype == w_dtype || mixed), op,
                  ": unsupported dtypes; CUDA kernels need equal float32, bfloat16 or float16, or "
                  "a float32 weight with a 16-bit x");
}

// The bias of a part or a shortcut: read in place.
inline void check_dense_bias(const char* op, const Tensor& bias, const Tensor& weight) {
  check_bias(op, bias, weight);
  STD_TORCH_CHECK(bias.is_contiguous(), op, ": a bias is not contiguous");
}

// A shift or a gate of every pixel of an image, or a shift of a row of a matrix: of x's dtype, any
// row stride.
inline void check_image_rows(const char* op, const char* name, const Tensor& values,
                             const Tensor& x, int64_t rows, int64_t columns) {
  check_same_device(op, x, values);
  STD_TORCH_CHECK(values.dim() == 2 && values.scalar_type() == x.scalar_type() &&
                      values.size(0) == rows && values.size(1) == columns &&
                      (columns == 1 || values.stride(1) == 1),
                  op, ": ", name, " is not [", rows, ", ", columns,
                  "] of x's dtype with adjacent columns");
}

// Tiles and splits as tile_choice.h chooses them.
inline Conv2dCudaOptions options_of(const char* op, const Tensor& x, bool tf32) {
  return {dtype_of(x, op), !tf32, 0, 0, false, nullptr, nullptr};
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
