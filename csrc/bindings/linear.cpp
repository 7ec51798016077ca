// sliced_linear and its gradients on the CPU: checks, allocates, fills Args, calls the kernels.
#include "ddsm/linear.h"

#include <torch/csrc/stable/library.h>

#include "linear_args.h"

namespace {

using namespace ddsm::binding;
using ddsm::Activation;
using ddsm::LinearWeight;

// x [..., c] as a matrix in the compute type.
Rows wide_rows_of(const Tensor& x) {
  if (x.scalar_type() != ScalarType::BFloat16) return rows_of(x);
  return rows_of(torch::stable::to(x, ScalarType::Float, std::nullopt, std::nullopt, std::nullopt,
                                   false, false, torch::headeronly::MemoryFormat::Contiguous));
}

LinearWeight weight_of(const char* op, const Tensor& weight, const WeightSizes& sizes, void* data) {
  const int64_t dims = weight.dim();
  return {data,
          dtype_of(weight, op),
          stride_of(weight, dims - 2),
          stride_of(weight, dims - 1),
          sizes.blocks,
          dims == 3 ? stride_of(weight, 0) : 0,
          sizes.c_out_max};
}

Tensor sliced_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     int64_t c_out, bool /*tf32*/, int64_t activation,
                     const std::optional<Tensor>& gate, const std::optional<Tensor>& residual) {
  const char* op = "sliced_linear";
  ddsm::LinearForwardArgs args{};
  args.activation = activation_of(op, activation);
  const WeightSizes sizes =
      check_linear(op, x, weight, bias, c_out, args.activation, check_cpu_dtypes);
  const bool glu = args.activation == Activation::kGeglu;
  Tensor y = empty_rows(op, x, glu ? c_out : sizes.blocks * c_out);
  check_gate(op, gate, y);
  check_added(op, residual, y);
  if (y.numel() == 0) return y;
  const Rows rows = wide_rows_of(x);
  const Tensor bias_rows = contiguous_or(bias, weight);
  const Tensor factors = gate.has_value() ? wide_gate(*gate) : weight;
  const Tensor added = contiguous_or(residual, weight);
  args.x = rows.tensor.const_data_ptr();
  args.rows = rows.rows;
  args.c_in = rows.columns;
  args.x_row_stride = rows.stride;
  args.weight = weight_of(op, weight, sizes, const_cast<void*>(weight.const_data_ptr()));
  args.bias = bias.has_value() ? bias_rows.const_data_ptr() : nullptr;
  args.gate = gate.has_value() ? factors.const_data_ptr() : nullptr;
  if (gate.has_value()) args.images = images_of(y);
  args.residual = residual.has_value() ? added.const_data_ptr() : nullptr;
  args.y = y.mutable_data_ptr();
  args.y_dtype = dtype_of(y, op);
  args.y_row_stride = y.size(y.dim() - 1);
  args.c_out = c_out;
  check_memory(op, ddsm::linear_forward(args));
  return y;
}

Tensor sliced_linear_grad_x(const Tensor& grad_y, const Tensor& weight, int64_t c_in,
                            bool /*tf32*/) {
  const char* op = "sliced_linear_grad_x";
  const WeightSizes sizes = weight_sizes(op, weight);
  ddsm::LinearGradXArgs args{};
  args.c_out = check_columns(op, grad_y, weight, sizes.blocks, sizes.c_out_max);
  check_cpu_dtypes(op, grad_y, weight);
  check_count(op, "c_in", c_in, sizes.c_in_max);
  Tensor grad_x = empty_rows(op, grad_y, c_in);
  if (grad_x.numel() == 0) return grad_x;
  const Rows rows = wide_rows_of(grad_y);
  args.grad_z = rows.tensor.const_data_ptr();
  args.rows = rows.rows;
  args.grad_z_row_stride = rows.stride;
  args.weight = weight_of(op, weight, sizes, const_cast<void*>(weight.const_data_ptr()));
  args.grad_x = grad_x.mutable_data_ptr();
  args.grad_x_dtype = dtype_of(grad_x, op);
  args.c_in = c_in;
  check_memory(op, ddsm::linear_grad_x(args));
  return grad_x;
}

void sliced_linear_grad_weight(const Tensor& grad_y, const Tensor& x, const Tensor& grad_weight,
                               const std::optional<Tensor>& grad_bias, bool /*tf32*/) {
  const char* op = "sliced_linear_grad_weight";
  const WeightSizes sizes =
      check_linear_grad_weight(op, grad_y, x, grad_weight, grad_bias, check_cpu_dtypes);
  if (grad_y.numel() == 0) return;
  const Rows gradient = wide_rows_of(grad_y), rows = wide_rows_of(x);
  ddsm::LinearGradWeightArgs args{};
  args.c_out = gradient.columns / sizes.blocks;
  args.c_in = rows.columns;
  args.grad_z = gradient.tensor.const_data_ptr();
  args.x = rows.tensor.const_data_ptr();
  args.compute = dtype_of(rows.tensor, op);
  args.rows = rows.rows;
  args.grad_z_row_stride = gradient.stride;
  args.x_row_stride = rows.stride;
  args.grad_weight = weight_of(op, grad_weight, sizes, grad_weight.mutable_data_ptr());
  args.grad_bias = grad_data_or_null(grad_bias);
  check_memory(op, ddsm::linear_grad_weight(args));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CPU, m) {
  m.impl("sliced_linear", TORCH_BOX(&sliced_linear));
  m.impl("sliced_linear_grad_x", TORCH_BOX(&sliced_linear_grad_x));
  m.impl("sliced_linear_grad_weight", TORCH_BOX(&sliced_linear_grad_weight));
}
