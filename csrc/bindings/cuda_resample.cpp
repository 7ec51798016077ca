// resample on CUDA: checks, allocates, fills Args, launches on torch's current stream.
#include <torch/csrc/stable/library.h>

#include "cuda_device.h"
#include "ddsm/resample_cuda.h"
#include "resample_args.h"

namespace {

using namespace ddsm::binding;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

Tensor resample(const Tensor& x, bool up, double gain, bool overlaps, int64_t taps, bool ring,
                const std::optional<Tensor>& residual) {
  const char* op = "resample";
  const DeviceGuard guard(x.get_device_index());
  const Resampling call(op, x, up, gain, taps, ring, residual);
  STD_TORCH_CHECK(call.args.dtype != ddsm::DType::kFloat64, op,
                  ": x is float64; the CUDA kernel needs float32, bfloat16 or float16");
  check_launch(op, ddsm::resample_cuda(call.args, overlaps, stream_of(x)));
  return call.y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) { m.impl("resample", TORCH_BOX(&resample)); }
