// sliced_linear and its gradients on the CPU: checks, allocates, fills Args, calls the kernels.
#include "ddsm/linear.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "tensor.h"

namespace {

using ddsm::DType;
using ddsm::LinearWeight;
using ddsm::binding::dtype_of;
using ddsm::binding::ScalarType;
using ddsm::binding::Tensor;

// These repeat the Python layer's checks as far as memory safety of the raw ops needs them.
void check_operands(const char* op, const Tensor& x, const Tensor& weight, int64_t width,
                    int64_t most) {
  const DType x_dtype = dtype_of(x, op), w_dtype = dtype_of(weight, op);
  const bool mixed = x_dtype == DType::kBFloat16 && w_dtype == DType::kFloat32;
  STD_TORCH_CHECK(x_dtype != DType::kFloat16 && (x_dtype == w_dtype || mixed), op,
                  ": unsupported dtypes; need equal float32, bfloat16 or float64, or a float32 "
                  "weight with bfloat16 x");
  STD_TORCH_CHECK(weight.dim() == 2, op, ": weight is not [c_out_max, c_in_max]");
  STD_TORCH_CHECK(x.dim() >= 1 && width >= 1 && width <= most, op, ": ", width,
                  " features do not match weight, need 1 to ", most);
}

void check_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& weight) {
  if (!bias.has_value()) return;
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0) &&
                      bias->scalar_type() == weight.scalar_type(),
                  op, ": bias is not [c_out_max] of weight's dtype");
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
};

// x [..., c] as a matrix in the compute type; x itself where it is that already.
Rows rows_of(const Tensor& x) {
  const int64_t columns = x.size(x.dim() - 1), rows = x.numel() / columns;
  if (x.scalar_type() == ScalarType::BFloat16) {
    return {torch::stable::to(x, ScalarType::Float, std::nullopt, std::nullopt, std::nullopt, false,
                              false, torch::headeronly::MemoryFormat::Contiguous),
            rows, columns, columns};
  }
  const int64_t stride = row_stride(x);
  if (stride >= 0) return {x, rows, columns, stride};
  return {torch::stable::contiguous(x), rows, columns, columns};
}

// Uninitialised [..., columns] with x's leading sizes, dtype and device.
Tensor empty_rows(const Tensor& x, int64_t columns) {
  std::vector<int64_t> sizes(x.dim());
  for (int64_t d = 0; d < x.dim(); ++d) sizes[d] = x.size(d);
  sizes.back() = columns;
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()),
                              x.scalar_type(), std::nullopt, x.device());
}

LinearWeight weight_of(const char* op, const Tensor& weight, void* data) {
  return {data, dtype_of(weight, op), weight.stride(0), weight.stride(1)};
}

void check_memory(const char* op, bool enough) {
  STD_TORCH_CHECK(enough, op, ": not enough memory for the workspace");
}

Tensor sliced_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     int64_t c_out) {
  const char* op = "sliced_linear";
  STD_TORCH_CHECK(x.dim() >= 1 && weight.dim() == 2, op, ": need x [..., c_in] and weight "
                  "[c_out_max, c_in_max]");
  check_operands(op, x, weight, x.size(x.dim() - 1), weight.size(1));
  check_bias(op, bias, weight);
  STD_TORCH_CHECK(c_out >= 1 && c_out <= weight.size(0), op, ": c_out is ", c_out,
                  ", weight has ", weight.size(0), " output channels; need 1 <= c_out <= ",
                  weight.size(0));
  Tensor y = empty_rows(x, c_out);
  if (y.numel() == 0) return y;
  const Rows rows = rows_of(x);
  const Tensor bias_row = bias.has_value() ? torch::stable::contiguous(*bias) : weight;
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

Tensor sliced_linear_grad_x(const Tensor& grad_y, const Tensor& weight, int64_t c_in) {
  const char* op = "sliced_linear_grad_x";
  STD_TORCH_CHECK(grad_y.dim() >= 1 && weight.dim() == 2, op, ": need grad_y [..., c_out] and "
                  "weight [c_out_max, c_in_max]");
  check_operands(op, grad_y, weight, grad_y.size(grad_y.dim() - 1), weight.size(0));
  STD_TORCH_CHECK(c_in >= 1 && c_in <= weight.size(1), op, ": c_in is ", c_in, ", weight has ",
                  weight.size(1), " input features");
  Tensor grad_x = empty_rows(grad_y, c_in);
  if (grad_x.numel() == 0) return grad_x;
  const Rows rows = rows_of(grad_y);
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
                               const std::optional<Tensor>& grad_bias) {
  const char* op = "sliced_linear_grad_weight";
  STD_TORCH_CHECK(grad_y.dim() >= 1 && x.dim() == grad_y.dim() && grad_weight.dim() == 2, op,
                  ": need grad_y [..., c_out], x [..., c_in] and a matrix grad_weight");
  check_operands(op, grad_y, grad_weight, grad_y.size(grad_y.dim() - 1), grad_weight.size(0));
  check_operands(op, x, grad_weight, x.size(x.dim() - 1), grad_weight.size(1));
  check_bias(op, grad_bias, grad_weight);
  STD_TORCH_CHECK(!grad_bias.has_value() || grad_bias->stride(0) == 1, op,
                  ": grad_bias is not contiguous");
  STD_TORCH_CHECK(grad_y.scalar_type() == x.scalar_type() &&
                      grad_y.numel() / grad_y.size(grad_y.dim() - 1) ==
                          x.numel() / x.size(x.dim() - 1),
                  op, ": grad_y and x differ in rows or dtype");
  if (grad_y.numel() == 0) return;
  const Rows gradient = rows_of(grad_y), rows = rows_of(x);
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
  args.grad_bias = grad_bias.has_value() ? grad_bias->mutable_data_ptr() : nullptr;
  check_memory(op, ddsm::linear_grad_weight(args));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CPU, m) {
  m.impl("sliced_linear", TORCH_BOX(&sliced_linear));
  m.impl("sliced_linear_grad_x", TORCH_BOX(&sliced_linear_grad_x));
  m.impl("sliced_linear_grad_weight", TORCH_BOX(&sliced_linear_grad_weight));
}
