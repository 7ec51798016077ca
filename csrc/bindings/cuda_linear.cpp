// sliced_linear and its gradients on CUDA: the 1x1 convolution of images with a pixel a row. A
// weight's blocks are convolutions side by side.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "cuda_conv2d_args.h"
#include "ddsm/linear_fused_cuda.h"
#include "linear_args.h"

namespace {

using namespace ddsm::binding;
using ddsm::advanced;
using ddsm::Conv2dImage;
using ddsm::Conv2dShape;
using ddsm::Conv2dWeight;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

// A matrix, or so many of its columns, as images that are one pixel wide.
Conv2dImage image_of(const Rows& rows, int64_t images, int64_t columns) {
  return {rows.tensor.const_data_ptr(), rows.rows / images * rows.stride, rows.stride, 0, columns,
          0};
}

Conv2dShape shape_of(const Rows& rows, int64_t images) {
  return {images, rows.rows / images, 1, rows.rows / images, 1, 1, 0, 1};
}

// Of a weight's first block.
Conv2dWeight weight_of(const char* op, const Tensor& weight, void* data) {
  const int64_t dims = weight.dim();
  return {data, dtype_of(weight, op), stride_of(weight, dims - 2), stride_of(weight, dims - 1),
          0,    0,                    1};
}

// Elements between a weight's blocks.
int64_t block_stride_of(const Tensor& weight) {
  return weight.dim() == 3 ? stride_of(weight, 0) : 0;
}

// From the arguments of all blocks to those of [first, first + args.parts).
void add_blocks(ddsm::Conv2dCudaForwardArgs& args, int64_t first, int64_t block_stride,
                int64_t c_out_max) {
  const ddsm::DType dtype = args.options.dtype, weight_dtype = args.weight.dtype;
  const void* const weight = args.weight.data;
  args.weight.data = advanced(args.weight.data, first * block_stride, weight_dtype);
  for (int64_t i = 1; i < args.parts; ++i) {
    args.further[i - 1] = {advanced(weight, (first + i) * block_stride, weight_dtype),
                           advanced(args.bias, (first + i) * c_out_max, weight_dtype)};
  }
  args.bias = advanced(args.bias, first * c_out_max, weight_dtype);
  args.gate = advanced(args.gate, first * args.c_out, dtype);
  args.residual = advanced(args.residual, first * args.c_out, dtype);
  args.y = advanced(args.y, first * args.c_out, dtype);
}

Tensor sliced_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     int64_t c_out, bool tf32, int64_t activation,
                     const std::optional<Tensor>& gate, const std::optional<Tensor>& residual) {
  const char* op = "sliced_linear";
  ddsm::Conv2dCudaForwardArgs args{};
  args.activation = activation_of(op, activation);
  const WeightSizes sizes = check_linear(op, x, weight, bias, c_out, args.activation, check_dtypes);
  const bool glu = args.activation == ddsm::Activation::kGeglu;
  const DeviceGuard guard(x.get_device_index());
  Tensor y = empty_rows(op, x, glu ? c_out : sizes.blocks * c_out);
  check_gate(op, gate, y);
  check_added(op, residual, y);
  if (y.numel() == 0) return y;
  const int64_t images = gate.has_value() ? images_of(y) : 1;
  const Rows rows = rows_of(x), factors = rows_of(gate.value_or(y));
  const Rows added = rows_of(residual.value_or(y));
  const Tensor bias_rows = contiguous_or(bias, weight);
  args.options = options_of(op, x, tf32);
  args.shape = shape_of(rows, images);
  args.x = image_of(rows, images, rows.columns);
  args.weight = weight_of(op, weight, const_cast<void*>(weight.const_data_ptr()));
  args.bias = bias.has_value() ? bias_rows.const_data_ptr() : nullptr;
  args.gate = gate.has_value() ? factors.tensor.const_data_ptr() : nullptr;
  args.gate_stride = factors.stride;
  args.residual = residual.has_value() ? added.tensor.const_data_ptr() : nullptr;
  args.residual_stride = added.stride;
  args.y = y.mutable_data_ptr();
  args.y_stride = y.size(y.dim() - 1);
  args.c_out = c_out;
  for (int64_t first = 0; first < sizes.blocks; first += ddsm::kConvParts) {
    ddsm::Conv2dCudaForwardArgs part = args;
    part.parts = std::min(sizes.blocks - first, ddsm::kConvParts);
    add_blocks(part, first, block_stride_of(weight), sizes.c_out_max);
    run_conv2d(op, part, x, ddsm::conv2d_forward_cuda_workspace_bytes, ddsm::conv2d_forward_cuda);
  }
  return y;
}

// Checks the weights beside each other and says where the outputs of each go; returns y's columns.
int64_t add_parts(const char* op, const Tensor& x, const std::vector<Tensor>& weights,
                  const std::vector<Tensor>& biases, const std::vector<int64_t>& c_out,
                  std::vector<ddsm::LinearCudaPart>& parts) {
  const size_t count = weights.size();
  STD_TORCH_CHECK(count >= 1 && (biases.empty() || biases.size() == count) &&
                      c_out.size() == count,
                  op, ": ", count, " weights, ", biases.size(), " biases and ", c_out.size(),
                  " counts of outputs; need one or more of each, and equally many, or no biases");
  constexpr int64_t kColumns = ddsm::kLinearColumns;
  int64_t columns = 0;
  for (size_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(weights[i].dim() == 2, op, ": a weight has ", weights[i].dim(),
                    " dimensions; need 2");
    check_columns(op, x, weights[i], 1, weight_sizes(op, weights[i]).c_in_max);
    check_dtypes(op, x, weights[i]);
    STD_TORCH_CHECK(weights[i].scalar_type() == weights[0].scalar_type(), op,
                    ": the weights differ in dtype; need equal ones");
    if (!biases.empty()) check_dense_bias(op, biases[i], weights[i]);
    check_c_out(op, c_out[i], weights[i]);
    const void* bias = biases.empty() ? nullptr : biases[i].const_data_ptr();
    parts.push_back({weights[i].const_data_ptr(), bias, weights[i].stride(0),
                     weights[i].stride(1), c_out[i], columns});
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
    check_image_rows(op, "shift", *shift, x, x.numel() / x.size(x.dim() - 1), c_out[0]);
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
  const WeightSizes sizes = weight_sizes(op, weight);
  const int64_t c_out = check_columns(op, grad_y, weight, sizes.blocks, sizes.c_out_max);
  check_dtypes(op, grad_y, weight);
  check_count(op, "c_in", c_in, sizes.c_in_max);
  const DeviceGuard guard(grad_y.get_device_index());
  Tensor grad_x = empty_rows(op, grad_y, c_in);
  if (grad_x.numel() == 0) return grad_x;
  const Rows rows = rows_of(grad_y);
  ddsm::Conv2dCudaGradXArgs args{};
  args.options = options_of(op, grad_y, tf32);
  args.shape = shape_of(rows, 1);
  args.grad_y = image_of(rows, 1, c_out);
  args.weight = weight_of(op, weight, const_cast<void*>(weight.const_data_ptr()));
  args.parts = sizes.blocks;
  args.part_stride = block_stride_of(weight);
  args.grad_x = grad_x.mutable_data_ptr();
  args.c_in = c_in;
  run_conv2d(op, args, grad_y, ddsm::conv2d_grad_x_cuda_workspace_bytes, ddsm::conv2d_grad_x_cuda);
  return grad_x;
}

void sliced_linear_grad_weight(const Tensor& grad_y, const Tensor& x, const Tensor& grad_weight,
                               const std::optional<Tensor>& grad_bias, bool tf32) {
  const char* op = "sliced_linear_grad_weight";
  const WeightSizes sizes =
      check_linear_grad_weight(op, grad_y, x, grad_weight, grad_bias, check_dtypes);
  if (grad_y.numel() == 0) return;
  const DeviceGuard guard(x.get_device_index());
  const Rows gradient = rows_of(grad_y), rows = rows_of(x);
  const int64_t c_out = gradient.columns / sizes.blocks;
  ddsm::Conv2dCudaGradWeightArgs args{};
  args.options = options_of(op, x, tf32);
  args.shape = shape_of(rows, 1);
  args.grad_y = image_of(gradient, 1, c_out);
  args.x = image_of(rows, 1, rows.columns);
  args.grad_weight = weight_of(op, grad_weight, grad_weight.mutable_data_ptr());
  args.grad_bias = grad_data_or_null(grad_bias);
  for (int64_t block = 0; block < sizes.blocks; ++block) {
    ddsm::Conv2dCudaGradWeightArgs part = args;
    part.grad_y.data = advanced(args.grad_y.data, block * c_out, args.options.dtype);
    part.grad_weight.data = advanced(args.grad_weight.data, block * block_stride_of(grad_weight),
                                  args.grad_weight.dtype);
    part.grad_bias = advanced(args.grad_bias, block * sizes.c_out_max, args.grad_weight.dtype);
    run_conv2d(op, part, x, ddsm::conv2d_grad_weight_cuda_workspace_bytes,
               ddsm::conv2d_grad_weight_cuda);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sliced_linear", TORCH_BOX(&sliced_linear));
  m.impl("sliced_linear_fused", TORCH_BOX(&sliced_linear_fused));
  m.impl("sliced_linear_grad_x", TORCH_BOX(&sliced_linear_grad_x));
  m.impl("sliced_linear_grad_weight", TORCH_BOX(&sliced_linear_grad_weight));
}
