// sliced_linear and its gradients on the CPU: checks, allocates, fills Args, calls the kernels.
#include "ddsm/linear.h"

#include <torch/csrc/stable/library.h>

#include "linear_args.h"

namespace {

using namespace ddsm::binding;
using ddsm::LinearWeight;

// x [..., c] as a matrix in the compute type.
Rows wide_rows_of(const Tensor& x) {
  if (x.scalar_type() != ScalarType::BFloat16) return rows_of(x);
  return rows_of(torch::stable::to(x, ScalarType::Float, std::nullopt, std::nullopt, std::nullopt,
                                   false, false, torch::headeronly::MemoryFormat::Contiguous));
}

LinearWeight weight_of(const char* op, const Tensor& weight, void* data) {
  return {data, dtype_of(weight, op), stride_of(weight, 0), stride_of(weight, 1)};
}

Tensor sliced_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     int64_t c_out, bool /*tf32*/) {
  const char* op = "sliced_linear";
  check_matrix(op, x, weight, 1);
  check_cpu_dtypes(op, x, weight);
  check_bias(op, bias, weight);
  check_c_out(op, c_out, weight);
  Tensor y = empty_rows(op, x, c_out);
  if (y.numel() == 0) return y;
  const Rows rows = wide_rows_of(x);
  const Tensor bias_row = contiguous_or(bias, weight);
  ddsm::LinearForwardArgs args{};
  args.x = rows.tensor.const_data_ptr();
  args.rows = rows.rows;
  args.c_in = rows.columns;
  args.x_row_stride = rows.stride;
  args.weight = weight_of(op, weight, const_cast<void*>(weight.const_data_ptr()));
  args.bias = bias.has_value() ? bias_row.const_data_ptr() : nullptr;
  args.y = y.mutable_data_ptr();
  args.y_dtype = dtype_of(y, op);
  args.c_out = c_out;
  check_memory(op, ddsm::linear_forward(args));
  return y;
}

Tensor sliced_linear_grad_x(const Tensor& grad_y, const Tensor& weight, int64_t c_in,
                            bool /*tf32*/) {
  const char* op = "sliced_linear_grad_x";
  check_matrix(op, grad_y, weight, 0);
  check_cpu_dtypes(op, grad_y, weight);
  check_c_in(op, c_in, weight);
  Tensor grad_x = empty_rows(op, grad_y, c_in);
  if (grad_x.numel() == 0) return grad_x;
  const Rows rows = wide_rows_of(grad_y);
  ddsm::LinearGradXArgs args{};
  args.grad_y = rows.tensor.const_data_ptr();
  args.rows = rows.rows;
  args.c_out = rows.columns;
  args.grad_y_row_stride = rows.stride;
  args.weight = weight_of(op, weight, const_cast<void*>(weight.const_data_ptr()));
  args.grad_x = grad_x.mutable_data_ptr();
  args.grad_x_dtype = dtype_of(grad_x, op);
  args.c_in = c_in;
  check_memory(op, ddsm::linear_grad_x(args));
  return grad_x;
}

void sliced_linear_grad_weight(const Tensor& grad_y, const Tensor& x, const Tensor& grad_weight,
                               const std::optional<Tensor>& grad_bias, bool /*tf32*/) {
  const char* op = "sliced_linear_grad_weight";
  check_matrix(op, grad_y, grad_weight, 0);
  check_matrix(op, x, grad_weight, 1);
  check_cpu_dtypes(op, x, grad_weight);
  check_same_rows(op, grad_y, x);
  check_grad_bias(op, grad_bias, grad_weight);
  check_written(op, "grad_weight", grad_weight);
  if (grad_y.numel() == 0) return;
  const Rows gradient = wide_rows_of(grad_y), rows = wide_rows_of(x);
  ddsm::LinearGradWeightArgs args{};
  args.grad_y = gradient.tensor.const_data_ptr();
  args.x = rows.tensor.const_data_ptr();
  args.compute = dtype_of(rows.tensor, op);
  args.rows = rows.rows;
  args.c_out = gradient.columns;
  args.c_in = rows.columns;
  args.grad_y_row_stride = gradient.stride;
  args.x_row_stride = rows.stride;
  args.grad_weight = weight_of(op, grad_weight, grad_weight.mutable_data_ptr());
  args.grad_bias = grad_data_or_null(grad_bias);
  check_memory(op, ddsm::linear_grad_weight(args));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CPU, m) {
  m.impl("sliced_linear", TORCH_BOX(&sliced_linear));
  m.impl("sliced_linear_grad_x", TORCH_BOX(&sliced_linear_grad_x));
  m.impl("sliced_linear_grad_weight", TORCH_BOX(&sliced_linear_grad_weight));
}
