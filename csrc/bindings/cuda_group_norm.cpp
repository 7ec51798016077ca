// sliced_group_norm on CUDA: checks, allocates, fills Args, launches on torch's current stream.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda_device.h"
#include "ddsm/group_norm.h"
#include "group_norm_args.h"

namespace {

using ddsm::GroupNormArgs;
using ddsm::binding::add_source;
using ddsm::binding::empty_source;
using ddsm::binding::empty_statistics;
using ddsm::binding::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor> sliced_group_norm_cuda(
    const Tensor& x_any, const std::optional<Tensor>& x2_any, const Tensor& weight_any,
    const Tensor& bias_any, int64_t groups, int64_t c2_offset, double eps, bool silu) {
  ddsm::binding::check_group_norm(x_any, x2_any, weight_any, bias_any, groups, c2_offset);
  const torch::stable::accelerator::DeviceGuard guard(x_any.get_device_index());
  const Tensor weight = ddsm::binding::dense_param(weight_any);
  const Tensor bias = ddsm::binding::dense_param(bias_any);
  const Tensor x = ddsm::binding::nhwc(x_any);
  const Tensor x2 = x2_any.has_value() ? ddsm::binding::nhwc(*x2_any) : x;
  Tensor y = empty_source(x, x_any), y2 = empty_source(x, x2_any);
  Tensor mean = empty_statistics(x, groups), rstd = empty_statistics(x, groups);
  GroupNormArgs args = ddsm::binding::group_norm_args(x, weight, bias, groups, silu);
  STD_TORCH_CHECK(args.dtype != ddsm::DType::kFloat64,
                  "sliced_group_norm: x is float64; the CUDA kernel needs float32, bfloat16 or "
                  "float16");
  args.eps = eps;
  add_source(args, x, 0);
  args.sources[0].y = y.mutable_data_ptr();
  if (x2_any.has_value()) {
    add_source(args, x2, c2_offset);
    args.sources[1].y = y2.mutable_data_ptr();
  }
  args.mean = mean.mutable_data_ptr();
  args.rstd = rstd.mutable_data_ptr();
  Tensor scratch = ddsm::binding::empty_scratch(ddsm::group_norm_cuda_scratch_bytes(args), x);
  args.scratch = scratch.mutable_data_ptr();
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const char* error = ddsm::group_norm_forward_cuda(args, stream);
  STD_TORCH_CHECK(error == nullptr, "sliced_group_norm: the CUDA launch failed: ", error);
  return {y, y2, mean, rstd};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sliced_group_norm", TORCH_BOX(&sliced_group_norm_cuda));
}
