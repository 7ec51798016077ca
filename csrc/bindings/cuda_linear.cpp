// sliced_linear and its gradients on CUDA: the 1x1 convolution of one image with a pixel a row.
#include <torch/csrc/stable/library.h>

#include "cuda_conv2d_args.h"
#include "linear_args.h"

namespace {

using namespace ddsm::binding;
using ddsm::Conv2dImage;
using ddsm::Conv2dShape;
using ddsm::Conv2dWeight;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

Conv2dImage image_of(const Rows& rows) {
  return {rows.tensor.const_data_ptr(), 0, rows.stride, 0, rows.columns, 0};
}

Conv2dShape shape_of(const Rows& rows) { return {1, rows.rows, 1, rows.rows, 1, 1, 0, 1}; }

Conv2dWeight weight_of(const char* op, const Tensor& weight, void* data) {
  return {data, dtype_of(weight, op), weight.stride(0), weight.stride(1), 0, 0, 1};
}

Tensor sliced_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     int64_t c_out, bool tf32) {
  const char* op = "sliced_linear";
  check_matrix(op, x, weight, 1);
  check_dtypes(op, x, weight);
  check_bias(op, bias, weight);
  check_c_out(op, c_out, weight);
  const DeviceGuard guard(x.get_device_index());
  Tensor y = empty_rows(x, c_out);
  if (y.numel() == 0) return y;
  const Rows rows = rows_of(x);
  const Tensor bias_row = contiguous_or(bias, weight);
  ddsm::Conv2dCudaForwardArgs args{};
  args.options = options_of(op, x, tf32);
  args.shape = shape_of(rows);
  args.x = image_of(rows);
  args.weight = weight_of(op, weight, const_cast<void*>(weight.const_data_ptr()));
  args.bias = bias.has_value() ? bias_row.const_data_ptr() : nullptr;
  args.y = y.mutable_data_ptr();
  args.c_out = c_out;
  run_conv2d(op, args, x, ddsm::conv2d_forward_cuda_workspace_bytes, ddsm::conv2d_forward_cuda);
  return y;
}

Tensor sliced_linear_grad_x(const Tensor& grad_y, const Tensor& weight, int64_t c_in, bool tf32) {
  const char* op = "sliced_linear_grad_x";
  check_matrix(op, grad_y, weight, 0);
  check_dtypes(op, grad_y, weight);
  check_c_in(op, c_in, weight);
  const DeviceGuard guard(grad_y.get_device_index());
  Tensor grad_x = empty_rows(grad_y, c_in);
  if (grad_x.numel() == 0) return grad_x;
  const Rows rows = rows_of(grad_y);
  ddsm::Conv2dCudaGradXArgs args{};
  args.options = options_of(op, grad_y, tf32);
  args.shape = shape_of(rows);
  args.grad_y = image_of(rows);
  args.weight = weight_of(op, weight, const_cast<void*>(weight.const_data_ptr()));
  args.grad_x = grad_x.mutable_data_ptr();
  args.c_in = c_in;
  run_conv2d(op, args, grad_y, ddsm::conv2d_grad_x_cuda_workspace_bytes, ddsm::conv2d_grad_x_cuda);
  return grad_x;
}

void sliced_linear_grad_weight(const Tensor& grad_y, const Tensor& x, const Tensor& grad_weight,
                               const std::optional<Tensor>& grad_bias, bool tf32) {
  const char* op = "sliced_linear_grad_weight";
  check_matrix(op, grad_y, grad_weight, 0);
  check_matrix(op, x, grad_weight, 1);
  check_dtypes(op, x, grad_weight);
  check_grad_bias(op, grad_bias, grad_weight);
  check_same_rows(op, grad_y, x);
  if (grad_y.numel() == 0) return;
  const DeviceGuard guard(x.get_device_index());
  const Rows gradient = rows_of(grad_y), rows = rows_of(x);
  ddsm::Conv2dCudaGradWeightArgs args{};
  args.options = options_of(op, x, tf32);
  args.shape = shape_of(rows);
  args.grad_y = image_of(gradient);
  args.x = image_of(rows);
  args.grad_weight = weight_of(op, grad_weight, grad_weight.mutable_data_ptr());
  args.grad_bias = grad_data_or_null(grad_bias);
  run_conv2d(op, args, x, ddsm::conv2d_grad_weight_cuda_workspace_bytes,
             ddsm::conv2d_grad_weight_cuda);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sliced_linear", TORCH_BOX(&sliced_linear));
  m.impl("sliced_linear_grad_x", TORCH_BOX(&sliced_linear_grad_x));
  m.impl("sliced_linear_grad_weight", TORCH_BOX(&sliced_linear_grad_weight));
}
