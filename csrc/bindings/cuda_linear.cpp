// sliced_linear and its gradients on CUDA: the 1x1 convolution of one image with a pixel a row.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "cuda_conv2d_args.h"
#include "ddsm/linear_fused_cuda.h"
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
  return {data, dtype_of(weight, op), stride_of(weight, 0), stride_of(weight, 1), 0, 0, 1};
}

Tensor sliced_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     int64_t c_out, bool tf32) {
  const char* op = "sliced_linear";
  check_matrix(op, x, weight, 1);
  check_dtypes(op, x, weight);
  check_bias(op, bias, weight);
  check_c_out(op, c_out, weight);
  const DeviceGuard guard(x.get_device_index());
  Tensor y = empty_rows(op, x, c_out);
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
  args.parts = 1;
  args.c_out = c_out;
  run_conv2d(op, args, x, ddsm::conv2d_forward_cuda_workspace_bytes, ddsm::conv2d_forward_cuda);
  return y;
}

// Checks the weights beside each other and says where the outputs of each go; returns y's columns.
int64_t add_parts(const char* op, const Tensor& x, const std::vector<Tensor>& weights,
                  const std::vector<Tensor>& biases, const std::vector<int64_t>& c_out,
                  std::vector<ddsm::LinearCudaPart>& parts) {
  const size_t count = weights.size();
  STD_TORCH_CHECK(count >= 1 && biases.size() == count && c_out.size() == count, op, ": ", count,
                  " weights, ", biases.size(), " biases and ", c_out.size(),
                  " counts of outputs; need one or more of each, and equally many");
  constexpr int64_t kColumns = ddsm::kLinearColumns;
  int64_t columns = 0;
  for (size_t i = 0; i < count; ++i) {
    check_matrix(op, x, weights[i], 1);
    check_dtypes(op, x, weights[i]);
    STD_TORCH_CHECK(weights[i].scalar_type() == weights[0].scalar_type(), op,
                    ": the weights differ in dtype; need equal ones");
    check_dense_bias(op, biases[i], weights[i]);
    check_c_out(op, c_out[i], weights[i]);
    parts.push_back({weights[i].const_data_ptr(), biases[i].const_data_ptr(),
                     weights[i].stride(0), weights[i].stride(1), c_out[i], columns});
    columns += (c_out[i] + kColumns - 1) / kColumns * kColumns;
  }
  return columns;
}

Tensor sliced_linear_fused(const Tensor& x, const std::vector<Tensor>& weights,
                           const std::vector<Tensor>& biases, const std::vector<int64_t>& c_out,
                           const std::optional<Tensor>& shift, bool silu, bool overlaps,
                           bool tf32) {
  const char* op = "sliced_linear_fused";
  std::vector<ddsm::LinearCudaPart> parts;
  const int64_t columns = add_parts(op, x, weights, biases, c_out, parts);
  if (shift.has_value()) {
    STD_TORCH_CHECK(parts.size() == 1, op, ": a shift beside ", parts.size(),
                    " weights; need one weight");
    check_shift(op, *shift, x, x.numel() / x.size(x.dim() - 1), c_out[0]);
  }
  const DeviceGuard guard(x.get_device_index());
  Tensor y = empty_rows(op, x, columns);
  if (y.numel() == 0) return y;
  const Rows rows = rows_of(x);
  ddsm::LinearFusedCudaArgs args{};
  args.dtype = dtype_of(x, op);
  args.weight_dtype = dtype_of(weights[0], op);
  args.ieee = !tf32;
  args.silu = silu;
  args.overlaps = overlaps;
  args.x = rows.tensor.const_data_ptr();
  args.x_stride = rows.stride;
  args.rows = rows.rows;
  args.c = rows.columns;
  args.parts = parts.data();
  args.part_count = static_cast<int64_t>(parts.size());
  if (shift.has_value()) {
    args.shift = shift->const_data_ptr();
    args.shift_stride = shift->stride(0);
  }
  args.y = y.mutable_data_ptr();
  args.y_stride = columns;
  check_launch(op, ddsm::linear_fused_cuda(args, stream_of(x)));
  return y;
}

Tensor sliced_linear_grad_x(const Tensor& grad_y, const Tensor& weight, int64_t c_in, bool tf32) {
  const char* op = "sliced_linear_grad_x";
  check_matrix(op, grad_y, weight, 0);
  check_dtypes(op, grad_y, weight);
  check_c_in(op, c_in, weight);
  const DeviceGuard guard(grad_y.get_device_index());
  Tensor grad_x = empty_rows(op, grad_y, c_in);
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
  check_written(op, "grad_weight", grad_weight);
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
  m.impl("sliced_linear_fused", TORCH_BOX(&sliced_linear_fused));
  m.impl("sliced_linear_grad_x", TORCH_BOX(&sliced_linear_grad_x));
  m.impl("sliced_linear_grad_weight", TORCH_BOX(&sliced_linear_grad_weight));
}
