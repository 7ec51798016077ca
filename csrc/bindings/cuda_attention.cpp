// sliced_attention, packed_attention and their backwards on CUDA: checks, allocates, fills Args,
// launches on torch's current stream.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "attention_args.h"
#include "cuda_device.h"
#include "ddsm/attention_cuda.h"

namespace {

using namespace ddsm::binding;
using ddsm::AttentionArgs;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

void check_type(const char* op, const AttentionArgs& args) {
  STD_TORCH_CHECK(args.dtype != ddsm::DType::kFloat64, op,
                  ": q is float64; the CUDA kernel needs float32, bfloat16 or float16");
}

void run_forward(const char* op, AttentionArgs& args, const Tensor& q) {
  check_type(op, args);
  check_launch(op, ddsm::attention_forward_cuda(args, stream_of(q)));
}

void run_backward(const char* op, AttentionArgs& args, const Tensor& q) {
  check_type(op, args);
  Tensor scratch = empty_scratch(ddsm::attention_backward_cuda_scratch_bytes(args), q);
  args.scratch = scratch.mutable_data_ptr();
  check_launch(op, ddsm::attention_backward_cuda(args, stream_of(q)));
}

std::tuple<Tensor, Tensor> sliced_attention(const Tensor& q_any, const Tensor& k_any,
                                            const Tensor& v_any, std::optional<double> scale) {
  const char* op = "sliced_attention";
  check_attention(op, q_any, k_any, v_any);
  const DeviceGuard guard(q_any.get_device_index());
  const Tensor q = adjacent(q_any), k = adjacent(k_any), v = adjacent(v_any);
  Tensor out = empty_by_position(q), lse = empty_lse(q, q.size(1), q.size(2));
  AttentionArgs args = attention_args(op, q, k, v, scale);
  args.out = strided(out);
  args.lse = lse.mutable_data_ptr();
  run_forward(op, args, q);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> sliced_attention_backward(
    const Tensor& grad_out_any, const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
    const Tensor& out_any, const Tensor& lse, std::optional<double> scale) {
  const char* op = "sliced_attention_backward";
  check_attention(op, q_any, k_any, v_any);
  check_backward(op, grad_out_any, q_any, out_any, lse);
  const DeviceGuard guard(q_any.get_device_index());
  const AttentionBackward t(grad_out_any, q_any, k_any, v_any, out_any, lse);
  AttentionArgs args = attention_args(op, t.q, t.k, t.v, scale);
  t.fill(args);
  run_backward(op, args, t.q);
  return {t.grad_q, t.grad_k, t.grad_v};
}

std::tuple<Tensor, Tensor> packed_attention(const Tensor& q, const std::optional<Tensor>& kv,
                                            int64_t heads, std::optional<double> scale) {
  const char* op = "packed_attention";
  const DeviceGuard guard(q.get_device_index());
  const Packed t(op, q, kv, heads);
  Tensor out = t.empty_out(), lse = empty_lse(t.q, heads, t.q.size(1));
  AttentionArgs args = t.args(op, scale);
  args.out = Packed::block(args, out, 0);
  args.lse = lse.mutable_data_ptr();
  run_forward(op, args, t.q);
  return {out, lse};
}

std::tuple<Tensor, Tensor> packed_attention_backward(
    const Tensor& grad_out, const Tensor& q, const std::optional<Tensor>& kv, const Tensor& out,
    const Tensor& lse, int64_t heads, std::optional<double> scale) {
  const char* op = "packed_attention_backward";
  const DeviceGuard guard(q.get_device_index());
  const PackedBackward t(op, grad_out, q, kv, out, lse, heads);
  AttentionArgs args = t.args(op, scale);
  t.fill(args);
  run_backward(op, args, t.q);
  return t.gradients();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sliced_attention", TORCH_BOX(&sliced_attention));
  m.impl("sliced_attention_backward", TORCH_BOX(&sliced_attention_backward));
  m.impl("packed_attention", TORCH_BOX(&packed_attention));
  m.impl("packed_attention_backward", TORCH_BOX(&packed_attention_backward));
}
