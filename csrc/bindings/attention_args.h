// What the CPU and the CUDA bindings of sliced_attention and packed_attention share: checks,
// outputs, Args.
#pragma once

#include <cmath>
#include <tuple>

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

// lse [n, heads, t_q] beside q [n, ...].
inline Tensor empty_lse(const Tensor& q, int64_t heads, int64_t t_q) {
  return empty_contiguous(q, statistics_type(q), {q.size(0), heads, t_q});
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

// That lse is `empty_lse`'s.
inline void check_lse(const char* op, const Tensor& lse, const Tensor& q, int64_t heads,
                      int64_t t_q) {
  STD_TORCH_CHECK(lse.dim() == 3 && lse.is_contiguous() && lse.size(0) == q.size(0) &&
                      lse.size(1) == heads && lse.size(2) == t_q &&
                      lse.scalar_type() == statistics_type(q) && same_device(lse, q),
                  op, ": lse is not what the forward gave");
}

// What the backward checks beyond check_attention.
inline void check_backward(const char* op, const Tensor& grad_out, const Tensor& q,
                           const Tensor& out, const Tensor& lse) {
  check_like(op, grad_out, q, "grad_out");
  check_like(op, out, q, "out");
  check_lse(op, lse, q, q.size(1), q.size(2));
}

// Without q, k and v. No scale stands for d^-0.5: computed here, so that torch.compile keeps d
// symbolic.
inline AttentionArgs args_of_sizes(const char* op, const Tensor& q, int64_t heads, int64_t t_q,
                                   int64_t t_k, int64_t d, std::optional<double> scale) {
  AttentionArgs args{};
  args.dtype = dtype_of(q, op);
  args.n = q.size(0);
  args.heads = heads;
  args.t_q = t_q;
  args.t_k = t_k;
  args.d = d;
  args.scale = scale.has_value() ? *scale : 1 / std::sqrt(static_cast<double>(d));
  return args;
}

inline AttentionArgs attention_args(const char* op, const Tensor& q, const Tensor& k,
                                    const Tensor& v, std::optional<double> scale) {
  AttentionArgs args = args_of_sizes(op, q, q.size(1), q.size(2), k.size(2), q.size(3), scale);
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

// ---- packed_attention --------------------------------------------------------------------------

// The tensor itself where its columns are adjacent in memory, else one contiguous copy.
inline Tensor adjacent_columns(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) <= 1 || tensor.stride(last) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}

// Queries, keys and values side by side: all in q [N, T, 3, heads * d], or queries in
// q [N, T_q, heads * d] beside keys and values in kv [N, T_k, 2, heads * d].
struct Packed {
  Tensor q;
  std::optional<Tensor> kv;
  int64_t heads;

  Packed(const char* op, const Tensor& q_any, const std::optional<Tensor>& kv_any, int64_t count)
      : q(adjacent_columns(checked(op, q_any, kv_any, count))), heads(count) {
    if (kv_any.has_value()) kv = adjacent_columns(*kv_any);
  }

  int64_t columns() const { return q.size(q.dim() - 1); }

  // Of sizes and inputs.
  AttentionArgs args(const char* op, std::optional<double> scale) const {
    const int64_t t_q = q.size(1), t_k = kv.has_value() ? kv->size(1) : t_q;
    AttentionArgs args = args_of_sizes(op, q, heads, t_q, t_k, columns() / heads, scale);
    place(args, q, kv, args.q, args.k, args.v);
    return args;
  }

  // Where q, k and v, or what lies as they do, are.
  static void place(const AttentionArgs& args, const Tensor& q, const std::optional<Tensor>& kv,
                    AttentionTensor& queries, AttentionTensor& keys, AttentionTensor& values) {
    queries = block(args, q, 0);
    keys = kv.has_value() ? block(args, *kv, 0) : block(args, q, 1);
    values = kv.has_value() ? block(args, *kv, 1) : block(args, q, 2);
  }

  // A block of heads * d columns; without blocks a tensor is one.
  static AttentionTensor block(const AttentionArgs& args, const Tensor& tensor, int64_t index) {
    const int64_t offset = tensor.dim() == 4 ? index * stride_of(tensor, 2) : 0;
    return {advanced(const_cast<void*>(tensor.const_data_ptr()), offset, args.dtype),
            stride_of(tensor, 0), args.d, stride_of(tensor, 1)};
  }

  // [N, T_q, heads * d]
  Tensor empty_out() const {
    return empty_contiguous(q, q.scalar_type(), {q.size(0), q.size(1), columns()});
  }

 private:
  // q, which the others are checked beside.
  static const Tensor& checked(const char* op, const Tensor& q, const std::optional<Tensor>& kv,
                               int64_t heads) {
    const int64_t dimensions = kv.has_value() ? 3 : 4;
    STD_TORCH_CHECK(q.dim() == dimensions && (kv.has_value() || q.size(2) == 3), op,
                    ": q has shape ", list_text(sizes_of(q)),
                    "; need [N, T, 3, heads * d], or [N, T, heads * d] beside kv");
    const int64_t columns = q.size(dimensions - 1);
    STD_TORCH_CHECK(heads >= 1 && columns >= 1 && columns % heads == 0, op, ": heads is ", heads,
                    ", q has ", columns, " columns; need 1 or more columns of each head");
    check_elements(op, "q", q);
    if (!kv.has_value()) {
      STD_TORCH_CHECK(q.size(1) >= 1, op, ": there are no keys; need at least 1");
      return q;
    }
    check_same_device(op, q, *kv);
    STD_TORCH_CHECK(kv->dim() == 4 && kv->scalar_type() == q.scalar_type() &&
                        kv->size(0) == q.size(0) && kv->size(1) >= 1 && kv->size(2) == 2 &&
                        kv->size(3) == columns,
                    op, ": kv has shape ", list_text(sizes_of(*kv)), "; need [", q.size(0),
                    ", T >= 1, 2, ", columns, "] and q's dtype");
    check_elements(op, "kv", *kv);
    return q;
  }
};

// The tensors of a backward call: inputs with adjacent columns, new gradients where they lie.
struct PackedBackward : Packed {
  Tensor grad_out, out, lse, grad_q;
  std::optional<Tensor> grad_kv;

  PackedBackward(const char* op, const Tensor& grad_out_any, const Tensor& q_any,
                 const std::optional<Tensor>& kv_any, const Tensor& out_any,
                 const Tensor& statistics, int64_t count)
      : Packed(op, q_any, kv_any, count),
        grad_out(checked_rows(op, grad_out_any, "grad_out")),
        out(checked_rows(op, out_any, "out")),
        lse(statistics),
        grad_q(empty_contiguous_like(q)) {
    check_lse(op, lse, q, heads, q.size(1));
    if (kv.has_value()) grad_kv = empty_contiguous_like(*kv);
  }

  // Beside what a forward call has.
  void fill(AttentionArgs& args) const {
    args.grad_out = block(args, grad_out, 0);
    args.out = block(args, out, 0);
    args.lse = const_cast<void*>(lse.const_data_ptr());
    place(args, grad_q, grad_kv, args.grad_q, args.grad_k, args.grad_v);
  }

  // That of kv has no elements where there is none.
  std::tuple<Tensor, Tensor> gradients() const {
    if (grad_kv.has_value()) return {grad_q, *grad_kv};
    return {grad_q, empty_contiguous(q, q.scalar_type(), {0})};
  }

 private:
  // [N, T_q, heads * d] of q's kind, with adjacent columns.
  Tensor checked_rows(const char* op, const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.dim() == 3 && tensor.scalar_type() == q.scalar_type() &&
                        same_device(tensor, q) && tensor.size(0) == q.size(0) &&
                        tensor.size(1) == q.size(1) && tensor.size(2) == columns(),
                    op, ": ", name, " does not match q; need the same dtype and device, and its ",
                    "images, positions and columns");
    return adjacent_columns(tensor);
  }
};

}  // namespace ddsm::binding
