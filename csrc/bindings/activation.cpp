// sliced_activation and its gradient on the CPU: checks, allocates, fills Args, calls the kernels.
#include "ddsm/activation.h"

#include <torch/csrc/stable/library.h>

#include "activation_args.h"
#include "linear_args.h"

namespace {

using namespace ddsm::binding;
using ddsm::Activation;

void check_cpu_dtype(const char* op, const Tensor& z) {
  STD_TORCH_CHECK(dtype_of(z, op) != ddsm::DType::kFloat16, op,
                  ": z is float16; the CPU kernel needs float32, bfloat16 or float64");
}

Tensor sliced_activation(const Tensor& z, int64_t activation, const std::optional<Tensor>& gate,
                         const std::optional<Tensor>& residual) {
  const char* op = "sliced_activation";
  ddsm::ActivationArgs args{};
  args.activation = activation_of(op, activation);
  args.channels = activated_channels(op, z, args.activation);
  check_cpu_dtype(op, z);
  Tensor y = empty_rows(op, z, args.channels);
  check_gate(op, gate, y);
  check_added(op, residual, y);
  if (y.numel() == 0) return y;
  const Rows from = rows_of(z), added = rows_of(residual.has_value() ? *residual : y);
  const Tensor factors = gate.has_value() ? wide_gate(*gate) : z;
  args.z = from.tensor.const_data_ptr();
  args.z_dtype = args.y_dtype = dtype_of(z, op);
  args.images = images_of(z);
  args.rows = from.rows / args.images;
  args.z_row_stride = from.stride;
  args.gate = gate.has_value() ? factors.const_data_ptr() : nullptr;
  args.residual = residual.has_value() ? added.tensor.const_data_ptr() : nullptr;
  args.residual_row_stride = added.stride;
  args.y = y.mutable_data_ptr();
  ddsm::activation(args);
  return y;
}

Tensor sliced_activation_backward(const Tensor& grad_y, const Tensor& z, int64_t activation,
                                  const std::optional<Tensor>& gate,
                                  const std::optional<Tensor>& grad_gate) {
  const char* op = "sliced_activation_backward";
  ddsm::ActivationBackwardArgs args{};
  args.activation = activation_of(op, activation);
  args.channels = activated_channels(op, z, args.activation);
  check_cpu_dtype(op, z);
  check_activation_backward(op, grad_y, z, args.channels, gate, grad_gate);
  Tensor grad_z = empty_rows(op, z, z.size(z.dim() - 1));
  const int64_t images = images_of(z);
  if (images == 0) return grad_z;
  const Rows from = rows_of(z), gradient = rows_of(grad_y);
  const Tensor factors = gate.has_value() ? wide_gate(*gate) : z;
  args.grad_y = gradient.tensor.const_data_ptr();
  args.grad_y_row_stride = gradient.stride;
  args.z = from.tensor.const_data_ptr();
  args.dtype = dtype_of(z, op);
  args.images = images;
  args.rows = from.rows / images;
  args.z_row_stride = from.stride;
  args.gate = gate.has_value() ? factors.const_data_ptr() : nullptr;
  args.grad_z = grad_z.mutable_data_ptr();
  args.grad_gate = grad_data_or_null(grad_gate);
  ddsm::activation_backward(args);
  return grad_z;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CPU, m) {
  m.impl("sliced_activation", TORCH_BOX(&sliced_activation));
  m.impl("sliced_activation_backward", TORCH_BOX(&sliced_activation_backward));
}
