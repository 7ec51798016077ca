// The schema of every op: the one list. Kernels register themselves in the file of their op.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ddsm_ext, m) {
  m.def(
      "sliced_conv2d(Tensor x, Tensor? x2, Tensor weight, Tensor? bias, SymInt c_out, "
      "SymInt c_in2_offset, SymInt stride, SymInt padding, bool upsample, Tensor? panels=None, "
      "int algo=0) -> Tensor");
  m.def(
      "sliced_conv2d_panels(Tensor weight, int algo, bool upsample, bool transposed, "
      "Tensor(a!) panels) -> ()");
  m.def(
      "sliced_conv2d_grad_x(Tensor grad_y, Tensor weight, SymInt c_in, SymInt c_in_offset, "
      "SymInt height, SymInt width, SymInt stride, SymInt padding, bool upsample, "
      "Tensor? panels=None, int algo=0) -> Tensor");
  m.def(
      "sliced_conv2d_grad_weight(Tensor grad_y, Tensor x, Tensor? x2, SymInt c_in2_offset, "
      "SymInt stride, SymInt padding, bool upsample, Tensor(a!) grad_weight, "
      "Tensor(b!)? grad_bias, int algo=0) -> ()");
  m.def("sliced_linear(Tensor x, Tensor weight, Tensor? bias, SymInt c_out) -> Tensor");
  m.def("sliced_linear_grad_x(Tensor grad_y, Tensor weight, SymInt c_in) -> Tensor");
  m.def(
      "sliced_linear_grad_weight(Tensor grad_y, Tensor x, Tensor(a!) grad_weight, "
      "Tensor(b!)? grad_bias) -> ()");
  m.def(
      "sliced_group_norm(Tensor x, Tensor? x2, Tensor weight, Tensor bias, SymInt groups, "
      "SymInt c2_offset, float eps, bool silu) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "sliced_group_norm_backward(Tensor grad_y, Tensor? grad_y2, Tensor x, Tensor? x2, "
      "Tensor weight, Tensor bias, Tensor mean, Tensor rstd, SymInt groups, SymInt c2_offset, "
      "bool silu, Tensor(a!)? grad_weight, Tensor(b!)? grad_bias) -> (Tensor, Tensor)");
  m.def("sliced_attention(Tensor q, Tensor k, Tensor v, float? scale) -> (Tensor, Tensor)");
  m.def(
      "sliced_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor lse, float? scale) -> (Tensor, Tensor, Tensor)");
}
