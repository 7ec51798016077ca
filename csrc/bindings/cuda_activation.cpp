// sliced_activation and its gradient on CUDA: checks, allocates, fills Args, launches on torch's
// current stream.
#include <torch/csrc/stable/library.h>

#include "activation_args.h"
#include "cuda_device.h"
#include "ddsm/activation_cuda.h"
#include "linear_args.h"

namespace {

using namespace ddsm::binding;
using ddsm::ActivationCudaArgs;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

// What both directions read of z [N, ..., columns], checked.
ActivationCudaArgs args_of(const char* op, const Tensor& z, int64_t activation) {
  ActivationCudaArgs args{};
  args.activation = activation_of(op, activation);
  args.columns = activated_channels(op, z, args.activation);
  args.dtype = dtype_of(z, op);
  STD_TORCH_CHECK(args.dtype != ddsm::DType::kFloat64, op,
                  ": z is float64; the CUDA kernel needs float32, bfloat16 or float16");
  args.images = images_of(z);
  args.rows = args.images > 0 ? z.numel() / z.size(z.dim() - 1) / args.images : 0;
  return args;
}

Tensor sliced_activation(const Tensor& z, int64_t activation, const std::optional<Tensor>& gate,
                         const std::optional<Tensor>& residual) {
  const char* op = "sliced_activation";
  const DeviceGuard guard(z.get_device_index());
  ActivationCudaArgs args = args_of(op, z, activation);
  Tensor y = empty_rows(op, z, args.columns);
  check_gate(op, gate, y);
  check_added(op, residual, y);
  const Rows from = rows_of(z), factors = rows_of(gate.value_or(y));
  const Rows added = rows_of(residual.value_or(y));
  args.z = from.tensor.const_data_ptr();
  args.z_stride = from.stride;
  args.gate = gate.has_value() ? factors.tensor.const_data_ptr() : nullptr;
  args.gate_stride = factors.stride;
  args.residual = residual.has_value() ? added.tensor.const_data_ptr() : nullptr;
  args.residual_stride = added.stride;
  args.y = y.mutable_data_ptr();
  check_launch(op, ddsm::activation_cuda(args, stream_of(z)));
  return y;
}

Tensor sliced_activation_backward(const Tensor& grad_y, const Tensor& z, int64_t activation,
                                  const std::optional<Tensor>& gate,
                                  const std::optional<Tensor>& grad_gate) {
  const char* op = "sliced_activation_backward";
  const DeviceGuard guard(z.get_device_index());
  ActivationCudaArgs args = args_of(op, z, activation);
  check_activation_backward(op, grad_y, z, args.columns, gate, grad_gate);
  args.grad_gate = static_cast<float*>(grad_data_or_null(grad_gate));
  Tensor grad_z = empty_rows(op, z, z.size(z.dim() - 1));
  const Rows from = rows_of(z), gradient = rows_of(grad_y), factors = rows_of(gate.value_or(z));
  args.z = from.tensor.const_data_ptr();
  args.z_stride = from.stride;
  args.gate = gate.has_value() ? factors.tensor.const_data_ptr() : nullptr;
  args.gate_stride = factors.stride;
  args.grad_y = gradient.tensor.const_data_ptr();
  args.grad_y_stride = gradient.stride;
  args.grad_z = grad_z.mutable_data_ptr();
  Tensor workspace = empty_scratch(ddsm::activation_backward_cuda_workspace_bytes(args), z);
  args.workspace = workspace.mutable_data_ptr();
  check_launch(op, ddsm::activation_backward_cuda(args, stream_of(z)));
  return grad_z;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sliced_activation", TORCH_BOX(&sliced_activation));
  m.impl("sliced_activation_backward", TORCH_BOX(&sliced_activation_backward));
}
