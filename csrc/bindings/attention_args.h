// What the CPU and the CUDA binding of sliced_attention share: checks, outputs, Args.
#pragma once

#include <cmath>

#include "ddsm/attention.h"
#include "tensor.h"

namespace ddsm::binding {

// The tensor itself where its head dimension is adjacent in memory, else one contiguous copy.
inline Tensor adjacent(const Tensor& tensor) {
  if (tensor.size(3) <= 1 || tensor.stride(3) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}

// [n, heads, t, d] with the memory of [n, t, heads, d], as the next projection reads it.
inline Tensor empty_by_position(const Tensor& like) {
  const int64_t n = like.size(0), heads = like.size(1), t = like.size(2), d = like.size(3);
  const int64_t sizes[4] = {n, heads, t, d}, strides[4] = {t * heads * d, d, heads * d, 1};
  return empty_strided(like, like.scalar_type(), sizes, strides, 4);
}

// lse [n, heads, t_q] beside q.
inline Tensor empty_lse(const Tensor& q) {
  const int64_t sizes[3] = {q.size(0), q.size(1), q.size(2)};
  const int64_t strides[3] = {sizes[1] * sizes[2], sizes[2], 1};
  return empty_strided(q, statistics_type(q), sizes, strides, 3);
}

inline AttentionTensor strided(const Tensor& tensor) {
  // The kernels only read what is an input; one struct serves both.
  return {const_cast<void*>(tensor.const_data_ptr()), stride_of(tensor, 0), stride_of(tensor, 1),
          stride_of(tensor, 2)};
}

// What the Python layer has checked already, for callers of the raw op: memory safety depends
// on it.
inline void check_attention(const char* op, const Tensor& q, const Tensor& k, const Tensor& v) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, op,
                  ": q, k or v is not 4-dimensional; need [N, heads, T, d]");
  check_same_device(op, q, k);
  check_same_device(op, q, v);
  STD_TORCH_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(), op,
                  ": q, k and v differ in dtype; need one dtype");
  for (int64_t i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(k.size(i) == v.size(i) && (i == 2 || k.size(i) == q.size(i)), op,
                    ": dimension ", i, " is ", q.size(i), " in q, ", k.size(i), " in k, ",
                    v.size(i), " in v; need one size (T of q may differ)");
  }
  STD_TORCH_CHECK(q.size(3) >= 1 && k.size(2) >= 1, op, ": the head size is ", q.size(3),
                  " and T_k ", k.size(2), "; need at least 1 of each");
  check_elements(op, "q", q);
  check_elements(op, "k", k);
}

inline void check_like(const char* op, const Tensor& tensor, const Tensor& q, const char* name) {
  bool same = tensor.dim() == 4 && tensor.scalar_type() == q.scalar_type() &&
              same_device(tensor, q);
  for (int64_t i = 0; same && i < 4; ++i) same = tensor.size(i) == q.size(i);
  STD_TORCH_CHECK(same, op, ": ", name,
                  " does not match q; need the same dtype, shape and device");
}

// What the backward checks beyond check_attention.
inline void check_backward(const char* op, const Tensor& grad_out, const Tensor& q,
                           const Tensor& out, const Tensor& lse) {
  check_like(op, grad_out, q, "grad_out");
  check_like(op, out, q, "out");
  STD_TORCH_CHECK(lse.dim() == 3 && lse.is_contiguous() && lse.size(0) == q.size(0) &&
                      lse.size(1) == q.size(1) && lse.size(2) == q.size(2) &&
                      lse.scalar_type() == statistics_type(q) && same_device(lse, q),
                  op, ": lse is not what the forward gave");
}

// No scale stands for d^-0.5: computed here, so that torch.compile keeps d symbolic.
inline AttentionArgs attention_args(const char* op, const Tensor& q, const Tensor& k,
                                    const Tensor& v, std::optional<double> scale) {
  AttentionArgs args{};
  args.dtype = dtype_of(q, op);
  args.n = q.size(0);
  args.heads = q.size(1);
  args.t_q = q.size(2);
  args.t_k = k.size(2);
  args.d = q.size(3);
  args.scale = scale.has_value() ? *scale : 1 / std::sqrt(static_cast<double>(args.d));
  args.q = strided(q);
  args.k = strided(k);
  args.v = strided(v);
  return args;
}

// The tensors of a backward call: inputs with adjacent head dimensions, new gradients.
struct AttentionBackward {
  Tensor q, k, v, grad_out, out, lse, grad_q, grad_k, grad_v;

  AttentionBackward(const Tensor& grad_out_any, const Tensor& q_any, const Tensor& k_any,
                    const Tensor& v_any, const Tensor& out_any, const Tensor& statistics)
      : q(adjacent(q_any)),
        k(adjacent(k_any)),
        v(adjacent(v_any)),
        grad_out(adjacent(grad_out_any)),
        out(adjacent(out_any)),
        lse(statistics),
        grad_q(empty_by_position(q)),
        grad_k(empty_by_position(k)),
        grad_v(empty_by_position(v)) {}

  // Beside what a forward call has.
  void fill(AttentionArgs& args) const {
    args.grad_out = strided(grad_out);
    args.out = strided(out);
    args.lse = const_cast<void*>(lse.const_data_ptr());
    args.grad_q = strided(grad_q);
    args.grad_k = strided(grad_k);
    args.grad_v = strided(grad_v);
  }
};

}  // namespace ddsm::binding
