// The schema of every op: the one list. Kernels register themselves in the file of their op.
//
// tf32: products of float32 numbers may be tf32 where the device has it (only GPUs do).
// pad_end: one more row and column of zeros behind the last ones.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ddsm_ext, m) {
  m.def(
      "sliced_conv2d(Tensor x, Tensor? x2, Tensor weight, Tensor? bias, SymInt c_out, "
      "SymInt c_in2_offset, SymInt stride, SymInt padding, bool upsample, Tensor? panels=None, "
      "int algo=0, bool tf32=False, bool pad_end=False) -> Tensor");
  // glu: of a weight [2, c_out_max, c_in_max, k, k], values' and gate halves', to be read by geglu.
  m.def(
      "sliced_conv2d_panels(Tensor weight, int algo, bool upsample, bool transposed, "
      "Tensor(a!) panels, bool glu=False) -> ()");
  m.def(
      "sliced_conv2d_grad_x(Tensor grad_y, Tensor weight, SymInt c_in, SymInt c_in_offset, "
      "SymInt height, SymInt width, SymInt stride, SymInt padding, bool upsample, "
      "Tensor? panels=None, int algo=0, bool tf32=False, bool pad_end=False) -> Tensor");
  m.def(
      "sliced_conv2d_grad_weight(Tensor grad_y, Tensor x, Tensor? x2, SymInt c_in2_offset, "
      "SymInt stride, SymInt padding, bool upsample, Tensor(a!) grad_weight, "
      "Tensor(b!)? grad_bias, int algo=0, bool tf32=False, bool pad_end=False) -> ()");
  // Bias, time shift, a 1x1 shortcut (none, or weight, bias, x and perhaps x2), the activation of
  // that number, a gate, residual, all times gain, and the moments of y in one launch; weights of
  // one shape side by side, all with a bias or none. tickets: zeros that no other launch uses at
  // the same time. overlaps: the kernel before writes no weights. CUDA only, without autograd: for
  // steps of a network.
  m.def(
      "sliced_conv2d_fused(Tensor x, Tensor? x2, Tensor[] weights, Tensor[] biases, int c_out, "
      "int c_in2_offset, int stride, int padding, bool upsample, Tensor? shift, "
      "Tensor? residual, Tensor[] shortcut, int shortcut_c_in2_offset, bool moments, "
      "Tensor? tickets, bool overlaps, bool tf32, float gain=1.0, bool pad_end=False, "
      "int activation=0, Tensor? gate=None) -> (Tensor, Tensor)");
  // residual + gate * the activation of the product with a weight [c_out_max, c_in_max], or of
  // those with [B, c_out_max, c_in_max], side by side. activation: the number of an Activation.
  m.def(
      "sliced_linear(Tensor x, Tensor weight, Tensor? bias, SymInt c_out, bool tf32=False, "
      "int activation=0, Tensor? gate=None, Tensor? residual=None) -> Tensor");
  m.def(
      "sliced_linear_grad_x(Tensor grad_y, Tensor weight, SymInt c_in, bool tf32=False) "
      "-> Tensor");
  m.def(
      "sliced_linear_grad_weight(Tensor grad_y, Tensor x, Tensor(a!) grad_weight, "
      "Tensor(b!)? grad_bias, bool tf32=False) -> ()");
  m.def(
      "sliced_activation(Tensor z, int activation, Tensor? gate=None, Tensor? residual=None) "
      "-> Tensor");
  m.def(
      "sliced_activation_backward(Tensor grad_y, Tensor z, int activation, Tensor? gate, "
      "Tensor(a!)? grad_gate) -> Tensor");
  // Weights side by side, each with its count of outputs, whose columns of the result begin at
  // multiples of 8, and all with a bias or none; act is SiLU or nothing. shift: of one weight's
  // outputs, added before act. CUDA only, without autograd.
  m.def(
      "sliced_linear_fused(Tensor x, Tensor[] weights, Tensor[] biases, int[] c_out, "
      "Tensor? shift, bool silu, bool overlaps, bool tf32) -> Tensor");
  // Sines and cosines in turn, or in halves: all cosines, then all sines (swapped: the sines first)
  // of t 10000^(-i / (dim / 2 - freq_shift)), or of 2 pi t frequencies[i]. Of like's dtype, with
  // rows of the table where t is one of its steps; CUDA only, without autograd. Never overlaps: it
  // begins when all kernels before it have ended.
  m.def(
      "sinusoidal_embedding(Tensor t, int dim, bool halves, Tensor? table, Tensor like, "
      "bool swapped=False, float freq_shift=0.0, Tensor? frequencies=None) -> Tensor");
  // Enlarged or halved by 2 with a filter of 2 taps (nearest neighbours, means of 2x2 pixels) or 4,
  // plus residual, times gain. ring: the larger image has a pixel more on each side. overlaps: the
  // kernel before it in the stream may still run (CUDA).
  m.def(
      "resample(Tensor x, bool up, float gain=1.0, bool overlaps=False, int taps=2, "
      "bool ring=False, Tensor? residual=None) -> Tensor");
  // scale and shift [N, c of all sources]: y = act(affine * (1 + scale) + shift); both or neither.
  m.def(
      "sliced_group_norm(Tensor x, Tensor? x2, Tensor weight, Tensor bias, SymInt groups, "
      "SymInt c2_offset, float eps, bool silu, Tensor? scale=None, Tensor? shift=None) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  // From the moments that convolutions left of the sources. down: the means of the result's 2x2
  // pixels. overlaps: it may begin while the kernel before it ends. CUDA only, without autograd.
  m.def(
      "sliced_group_norm_apply(Tensor x, Tensor? x2, Tensor weight, Tensor bias, int groups, "
      "int c2_offset, float eps, bool silu, Tensor? moments, Tensor? moments2, "
      "Tensor? scale, Tensor? shift, bool down, bool overlaps) -> (Tensor, Tensor)");
  m.def(
      "sliced_group_norm_backward(Tensor grad_y, Tensor? grad_y2, Tensor x, Tensor? x2, "
      "Tensor weight, Tensor bias, Tensor mean, Tensor rstd, SymInt groups, SymInt c2_offset, "
      "bool silu, Tensor(a!)? grad_weight, Tensor(b!)? grad_bias, Tensor? scale=None, "
      "Tensor? shift=None, Tensor(c!)? grad_scale=None, Tensor(d!)? grad_shift=None) "
      "-> (Tensor, Tensor)");
  // Of x [N, ..., c]; scale and shift [N, c]: y = affine * (1 + scale) + shift; both or neither.
  m.def(
      "sliced_layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, Tensor? scale=None, "
      "Tensor? shift=None) -> (Tensor, Tensor, Tensor)");
  // overlaps: it may begin while the kernel before it ends. CUDA only, without autograd.
  m.def(
      "sliced_layer_norm_apply(Tensor x, Tensor? weight, Tensor? bias, float eps, Tensor? scale, "
      "Tensor? shift, bool overlaps) -> Tensor");
  m.def(
      "sliced_layer_norm_backward(Tensor grad_y, Tensor x, Tensor? weight, Tensor? bias, "
      "Tensor mean, Tensor rstd, Tensor(a!)? grad_weight, Tensor(b!)? grad_bias, "
      "Tensor? scale=None, Tensor? shift=None, Tensor(c!)? grad_scale=None, "
      "Tensor(d!)? grad_shift=None) -> Tensor");
  m.def("sliced_attention(Tensor q, Tensor k, Tensor v, float? scale) -> (Tensor, Tensor)");
  m.def(
      "sliced_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor lse, float? scale) -> (Tensor, Tensor, Tensor)");
  // Queries, keys and values side by side in q [N, T, 3, heads * d]; or q [N, T_q, heads * d] and
  // kv [N, T_k, 2, heads * d]. The gradients lie as they do; that of kv is empty where it is.
  m.def(
      "packed_attention(Tensor q, Tensor? kv, SymInt heads, float? scale) -> (Tensor, Tensor)");
  m.def(
      "packed_attention_backward(Tensor grad_out, Tensor q, Tensor? kv, Tensor out, Tensor lse, "
      "SymInt heads, float? scale) -> (Tensor, Tensor)");
}
