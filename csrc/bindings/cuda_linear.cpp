// sliced_linear and its gradients on CUDA: the 1x1 convolution of one image with a pixel a row.
// float32 products keep full precision, as torch's matrix products do by default.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "cuda_conv2d_args.h"

namespace {

using namespace ddsm::binding;
using ddsm::Conv2dImage;
using ddsm::Conv2dShape;
using ddsm::Conv2dWeight;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

void check_matrix(const char* op, const Tensor& x, const Tensor& weight, int64_t dimension) {
  STD_TORCH_CHECK(x.dim() >= 1 && weight.dim() == 2, op, ": need x [..., c] and a matrix weight");
  check_operands(op, x, weight);
  const int64_t width = x.size(x.dim() - 1), most = weight.size(dimension);
  STD_TORCH_CHECK(width >= 1 && width <= most, op, ": ", width,
                  " features do not match weight, need 1 to ", most);
}

// Elements between neighbouring rows if x [..., c] is a matrix [rows, c] with adjacent columns,
// else -1.
int64_t row_stride(const Tensor& x) {
  const int64_t dims = x.dim(), columns = x.size(dims - 1);
  if (columns > 1 && x.stride(dims - 1) != 1) return -1;
  int64_t stride = -1, expected = -1;
  for (int64_t d = dims - 2; d >= 0; --d) {
    if (x.size(d) == 1) continue;
    if (stride < 0) stride = expected = x.stride(d);
    if (x.stride(d) != expected) return -1;
    expected *= x.size(d);
  }
  return stride < 0 ? columns : stride;
}

struct Rows {
  Tensor tensor;  // keeps the memory
  int64_t rows, columns, stride;

  Conv2dImage image() const { return {tensor.const_data_ptr(), 0, stride, 0, columns, 0}; }
  Conv2dShape shape() const { return {1, rows, 1, rows, 1, 1, 0, 1}; }
};

// x [..., c] as a matrix; x itself where it is that already.
Rows rows_of(const Tensor& x) {
  const int64_t columns = x.size(x.dim() - 1), rows = x.numel() / columns;
  const int64_t stride = row_stride(x);
  if (stride >= 0) return {x, rows, columns, stride};
  return {torch::stable::contiguous(x), rows, columns, columns};
}

// Contiguous [..., columns] beside x [..., c].
Tensor empty_rows(const Tensor& x, int64_t columns) {
  const int64_t dims = x.dim();
  std::vector<int64_t> sizes(dims), strides(dims);
  int64_t stride = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    sizes[d] = d == dims - 1 ? columns : x.size(d);
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  return empty_strided(x, x.scalar_type(), sizes.data(), strides.data(), dims);
}

Conv2dWeight weight_of(const char* op, const Tensor& weight, void* data) {
  return {data, dtype_of(weight, op), weight.stride(0), weight.stride(1), 0, 0, 1};
}

Tensor sliced_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     int64_t c_out) {
  const char* op = "sliced_linear";
  check_matrix(op, x, weight, 1);
  check_bias(op, bias, weight);
  check_c_out(op, c_out, weight);
  const DeviceGuard guard(x.get_device_index());
  Tensor y = empty_rows(x, c_out);
  if (y.numel() == 0) return y;
  const Rows rows = rows_of(x);
  const Tensor bias_row = contiguous_or(bias, weight);
  ddsm::Conv2dCudaForwardArgs args{};
  args.options = {dtype_of(x, op), true, 0, 0, nullptr};
  args.shape = rows.shape();
  args.x = rows.image();
  args.weight = weight_of(op, weight, const_cast<void*>(weight.const_data_ptr()));
  args.bias = bias.has_value() ? bias_row.const_data_ptr() : nullptr;
  args.y = y.mutable_data_ptr();
  args.c_out = c_out;
  run_conv2d(op, args, x, ddsm::conv2d_forward_cuda_workspace_bytes, ddsm::conv2d_forward_cuda);
  return y;
}

Tensor sliced_linear_grad_x(const Tensor& grad_y, const Tensor& weight, int64_t c_in) {
  const char* op = "sliced_linear_grad_x";
  check_matrix(op, grad_y, weight, 0);
  STD_TORCH_CHECK(c_in >= 1 && c_in <= weight.size(1), op, ": c_in is ", c_in, ", weight has ",
                  weight.size(1), " input features");
  const DeviceGuard guard(grad_y.get_device_index());
  Tensor grad_x = empty_rows(grad_y, c_in);
  if (grad_x.numel() == 0) return grad_x;
  const Rows rows = rows_of(grad_y);
  ddsm::Conv2dCudaGradXArgs args{};
  args.options = {dtype_of(grad_y, op), true, 0, 0, nullptr};
  args.shape = rows.shape();
  args.grad_y = rows.image();
  args.weight = weight_of(op, weight, const_cast<void*>(weight.const_data_ptr()));
  args.grad_x = grad_x.mutable_data_ptr();
  args.c_in = c_in;
  run_conv2d(op, args, grad_y, ddsm::conv2d_grad_x_cuda_workspace_bytes, ddsm::conv2d_grad_x_cuda);
  return grad_x;
}

void sliced_linear_grad_weight(const Tensor& grad_y, const Tensor& x, const Tensor& grad_weight,
                               const std::optional<Tensor>& grad_bias) {
  const char* op = "sliced_linear_grad_weight";
  check_matrix(op, grad_y, grad_weight, 0);
  check_matrix(op, x, grad_weight, 1);
  check_grad_bias(op, grad_bias, grad_weight);
  STD_TORCH_CHECK(grad_y.scalar_type() == x.scalar_type() &&
                      grad_y.numel() / grad_y.size(grad_y.dim() - 1) ==
                          x.numel() / x.size(x.dim() - 1),
                  op, ": grad_y and x differ in rows or dtype");
  if (grad_y.numel() == 0) return;
  const DeviceGuard guard(x.get_device_index());
  const Rows gradient = rows_of(grad_y), rows = rows_of(x);
  ddsm::Conv2dCudaGradWeightArgs args{};
  args.options = {dtype_of(x, op), true, 0, 0, nullptr};
  args.shape = rows.shape();
  args.grad_y = gradient.image();
  args.x = rows.image();
  args.grad_weight = weight_of(op, grad_weight, grad_weight.mutable_data_ptr());
  args.grad_bias = grad_bias.has_value() ? grad_bias->mutable_data_ptr() : nullptr;
  run_conv2d(op, args, x, ddsm::conv2d_grad_weight_cuda_workspace_bytes,
             ddsm::conv2d_grad_weight_cuda);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sliced_linear", TORCH_BOX(&sliced_linear));
  m.impl("sliced_linear_grad_x", TORCH_BOX(&sliced_linear_grad_x));
  m.impl("sliced_linear_grad_weight", TORCH_BOX(&sliced_linear_grad_weight));
}
