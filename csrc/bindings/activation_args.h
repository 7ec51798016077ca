// What the bindings of sliced_activation, and of what it is fused into, share on every device.
#pragma once

#include "ddsm/activation.h"
#include "tensor.h"

namespace ddsm::binding {

inline Activation activation_of(const char* op, int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number <= 3, op, ": activation is ", number, "; need 0 to 3");
  return static_cast<Activation>(number);
}

// Channels of the activation of z [..., columns].
inline int64_t activated_channels(const char* op, const Tensor& z, Activation activation) {
  STD_TORCH_CHECK(z.dim() >= 1 && z.size(z.dim() - 1) >= 1, op,
                  ": z has no column; need [..., c] with 1 <= c");
  check_elements(op, "z", z);
  const int64_t columns = z.size(z.dim() - 1);
  if (activation != Activation::kGeglu) return columns;
  STD_TORCH_CHECK(columns % 2 == 0, op, ": z has ", columns, " columns; geglu needs two blocks");
  return columns / 2;
}

// What y [N, ..., channels] is multiplied by, a row an image.
inline void check_gate(const char* op, const std::optional<Tensor>& gate, const Tensor& y) {
  if (!gate.has_value()) return;
  check_same_device(op, y, *gate);
  const int64_t channels = y.size(y.dim() - 1);
  STD_TORCH_CHECK(y.dim() >= 2 && gate->dim() == 2 && gate->size(0) == y.size(0) &&
                      gate->size(1) == channels && gate->scalar_type() == y.scalar_type(),
                  op, ": gate is not [N, ", channels, "] of the result's images and dtype");
}

// A gate as the CPU's kernels read it.
inline Tensor wide_gate(const Tensor& gate) {
  if (gate.scalar_type() != ScalarType::BFloat16) return torch::stable::contiguous(gate);
  return torch::stable::to(gate, ScalarType::Float, std::nullopt, std::nullopt, std::nullopt, false,
                           false, torch::headeronly::MemoryFormat::Contiguous);
}

// What is added to y.
inline void check_added(const char* op, const std::optional<Tensor>& residual, const Tensor& y) {
  if (!residual.has_value()) return;
  check_same_device(op, y, *residual);
  STD_TORCH_CHECK(sizes_of(*residual) == sizes_of(y) && residual->scalar_type() == y.scalar_type(),
                  op, ": residual is not of the result's shape ", list_text(sizes_of(y)),
                  " and dtype");
  check_elements(op, "residual", *residual);
}

// What a backward call reads beside z [N, ..., columns], and the gradient of gate that it adds to.
inline void check_activation_backward(const char* op, const Tensor& grad_y, const Tensor& z,
                                      int64_t channels, const std::optional<Tensor>& gate,
                                      const std::optional<Tensor>& grad_gate) {
  std::vector<int64_t> sizes = sizes_of(z);
  sizes.back() = channels;
  check_same_device(op, z, grad_y);
  STD_TORCH_CHECK(sizes_of(grad_y) == sizes && grad_y.scalar_type() == z.scalar_type(), op,
                  ": grad_y is not ", list_text(sizes), " of z's dtype");
  check_elements(op, "grad_y", grad_y);
  check_gate(op, gate, grad_y);
  if (!grad_gate.has_value()) return;
  const std::vector<int64_t> rows{sizes[0], channels};
  check_same_device(op, z, *grad_gate);
  STD_TORCH_CHECK(z.dim() >= 2 && sizes_of(*grad_gate) == rows && grad_gate->is_contiguous() &&
                      grad_gate->scalar_type() == statistics_type(z),
                  op, ": grad_gate is not a contiguous ", list_text(rows),
                  " of float32, or float64 beside such a z");
}

// Images of a tensor [N, ..., c] whose rows are walked; [c] is one.
inline int64_t images_of(const Tensor& y) { return y.dim() > 1 ? y.size(0) : 1; }

}  // namespace ddsm::binding
