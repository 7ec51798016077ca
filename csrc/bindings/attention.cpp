// sliced_attention and its backward on the CPU: checks, allocates, fills Args, calls the kernels.
#include "ddsm/attention.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

#include "tensor.h"

namespace {

using ddsm::AttentionArgs;
using ddsm::AttentionTensor;
using ddsm::binding::empty_scratch;
using ddsm::binding::Tensor;

// Multiply-adds below which another thread costs more than it brings.
constexpr int64_t kMacsPerSlot = 1 << 19;

// The tensor itself where its head dimension is adjacent in memory, else one contiguous copy.
Tensor adjacent(const Tensor& tensor) {
  if (tensor.size(3) <= 1 || tensor.stride(3) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}

// [n, heads, t, d] with the memory of [n, t, heads, d], as the next projection reads it.
Tensor empty_by_position(const Tensor& like) {
  const int64_t n = like.size(0), heads = like.size(1), t = like.size(2), d = like.size(3);
  const int64_t sizes[4] = {n, heads, t, d}, strides[4] = {t * heads * d, d, heads * d, 1};
  return ddsm::binding::empty_strided(like, like.scalar_type(), sizes, strides, 4);
}

AttentionTensor strided(const Tensor& tensor) {
  // The kernels only read what is an input; one struct serves both.
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1),
          tensor.stride(2)};
}

// What the Python layer has checked already, for callers of the raw op: memory safety depends
// on it.
void check(const Tensor& q, const Tensor& k, const Tensor& v) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4,
                  "sliced_attention: q, k or v is not 4-dimensional; need [N, heads, T, d]");
  STD_TORCH_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
                  "sliced_attention: q, k and v differ in dtype; need one dtype");
  for (int64_t i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(k.size(i) == v.size(i) && (i == 2 || k.size(i) == q.size(i)),
                    "sliced_attention: dimension ", i, " is ", q.size(i), " in q, ", k.size(i),
                    " in k, ", v.size(i), " in v; need one size (T of q may differ)");
  }
  STD_TORCH_CHECK(q.size(3) >= 1 && k.size(2) >= 1, "sliced_attention: the head size is ",
                  q.size(3), " and T_k ", k.size(2), "; need at least 1 of each");
}

// No scale stands for d^-0.5: computed here, so that torch.compile keeps d symbolic.
AttentionArgs args_of(const Tensor& q, const Tensor& k, const Tensor& v,
                      std::optional<double> scale) {
  AttentionArgs args{};
  args.dtype = ddsm::binding::dtype_of(q, "sliced_attention");
  STD_TORCH_CHECK(args.dtype != ddsm::DType::kFloat16,
                  "sliced_attention: q is float16; the CPU kernel needs float32, bfloat16 or "
                  "float64");
  args.n = q.size(0);
  args.heads = q.size(1);
  args.t_q = q.size(2);
  args.t_k = k.size(2);
  args.d = q.size(3);
  args.scale = scale.has_value() ? *scale : 1 / std::sqrt(static_cast<double>(args.d));
  args.q = strided(q);
  args.k = strided(k);
  args.v = strided(v);
  const int64_t macs = args.n * args.heads * args.t_q * args.t_k * args.d;
  const int64_t worth = macs / kMacsPerSlot + 1, threads = ddsm::num_threads();
  args.slots = worth < threads ? worth : threads;
  return args;
}

std::tuple<Tensor, Tensor> sliced_attention(const Tensor& q_any, const Tensor& k_any,
                                            const Tensor& v_any, std::optional<double> scale) {
  check(q_any, k_any, v_any);
  const Tensor q = adjacent(q_any), k = adjacent(k_any), v = adjacent(v_any);
  Tensor out = empty_by_position(q);
  const int64_t sizes[3] = {q.size(0), q.size(1), q.size(2)};
  const int64_t strides[3] = {sizes[1] * sizes[2], sizes[2], 1};
  Tensor lse =
      ddsm::binding::empty_strided(q, ddsm::binding::statistics_type(q), sizes, strides, 3);
  AttentionArgs args = args_of(q, k, v, scale);
  args.out = strided(out);
  args.lse = lse.mutable_data_ptr();
  Tensor scratch = empty_scratch(ddsm::attention_forward_scratch_bytes(args), q);
  args.scratch = scratch.mutable_data_ptr();
  ddsm::attention_forward(args);
  return {out, lse};
}

void check_like(const Tensor& tensor, const Tensor& q, const char* name) {
  bool same = tensor.dim() == 4 && tensor.scalar_type() == q.scalar_type();
  for (int64_t i = 0; same && i < 4; ++i) same = tensor.size(i) == q.size(i);
  STD_TORCH_CHECK(same, "sliced_attention_backward: ", name,
                  " does not match q; need the same dtype and shape");
}

std::tuple<Tensor, Tensor, Tensor> sliced_attention_backward(
    const Tensor& grad_out_any, const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
    const Tensor& out_any, const Tensor& lse, std::optional<double> scale) {
  check(q_any, k_any, v_any);
  check_like(grad_out_any, q_any, "grad_out");
  check_like(out_any, q_any, "out");
  STD_TORCH_CHECK(lse.dim() == 3 && lse.is_contiguous() && lse.size(0) == q_any.size(0) &&
                      lse.size(1) == q_any.size(1) && lse.size(2) == q_any.size(2) &&
                      lse.scalar_type() == ddsm::binding::statistics_type(q_any),
                  "sliced_attention_backward: lse is not what the forward gave");
  const Tensor q = adjacent(q_any), k = adjacent(k_any), v = adjacent(v_any);
  const Tensor grad_out = adjacent(grad_out_any), out = adjacent(out_any);
  Tensor grad_q = empty_by_position(q);
  Tensor grad_k = empty_by_position(k);
  Tensor grad_v = empty_by_position(v);
  AttentionArgs args = args_of(q, k, v, scale);
  args.grad_out = strided(grad_out);
  args.out = strided(out);
  args.lse = const_cast<void*>(lse.const_data_ptr());
  args.grad_q = strided(grad_q);
  args.grad_k = strided(grad_k);
  args.grad_v = strided(grad_v);
  Tensor scratch = empty_scratch(ddsm::attention_backward_scratch_bytes(args), q);
  args.scratch = scratch.mutable_data_ptr();
  ddsm::attention_backward(args);
  return {grad_q, grad_k, grad_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CPU, m) {
  m.impl("sliced_attention", TORCH_BOX(&sliced_attention));
  m.impl("sliced_attention_backward", TORCH_BOX(&sliced_attention_backward));
}
