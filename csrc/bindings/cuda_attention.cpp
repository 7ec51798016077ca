// sliced_attention and its backward on CUDA: checks, allocates, fills Args, launches on torch's
// current stream.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "attention_args.h"
#include "cuda_device.h"
#include "ddsm/attention_cuda.h"

namespace {

using namespace ddsm::binding;
using ddsm::AttentionArgs;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

AttentionArgs cuda_args(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                        std::optional<double> scale) {
  const AttentionArgs args = attention_args(op, q, k, v, scale);
  STD_TORCH_CHECK(args.dtype != ddsm::DType::kFloat64, op,
                  ": q is float64; the CUDA kernel needs float32, bfloat16 or float16");
  return args;
}

std::tuple<Tensor, Tensor> sliced_attention(const Tensor& q_any, const Tensor& k_any,
                                            const Tensor& v_any, std::optional<double> scale) {
  const char* op = "sliced_attention";
  check_attention(op, q_any, k_any, v_any);
  const DeviceGuard guard(q_any.get_device_index());
  const Tensor q = adjacent(q_any), k = adjacent(k_any), v = adjacent(v_any);
  Tensor out = empty_by_position(q), lse = empty_lse(q);
  AttentionArgs args = cuda_args(op, q, k, v, scale);
  args.out = strided(out);
  args.lse = lse.mutable_data_ptr();
  check_launch(op, ddsm::attention_forward_cuda(args, stream_of(q)));
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
  AttentionArgs args = cuda_args(op, t.q, t.k, t.v, scale);
  t.fill(args);
  Tensor scratch = empty_scratch(ddsm::attention_backward_cuda_scratch_bytes(args), t.q);
  args.scratch = scratch.mutable_data_ptr();
  check_launch(op, ddsm::attention_backward_cuda(args, stream_of(t.q)));
  return {t.grad_q, t.grad_k, t.grad_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sliced_attention", TORCH_BOX(&sliced_attention));
  m.impl("sliced_attention_backward", TORCH_BOX(&sliced_attention_backward));
}
