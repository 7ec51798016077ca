// resample on the CPU: checks, allocates, fills Args, calls the kernel.
#include "ddsm/resample.h"

#include <torch/csrc/stable/library.h>

#include "resample_args.h"

namespace {

using namespace ddsm::binding;

Tensor resample(const Tensor& x, bool up, double gain, bool /*overlaps*/, int64_t taps, bool ring,
                const std::optional<Tensor>& residual) {
  const char* op = "resample";
  const Resampling call(op, x, up, gain, taps, ring, residual);
  STD_TORCH_CHECK(call.args.dtype != ddsm::DType::kFloat16, op,
                  ": x is float16; the CPU kernel needs float32, bfloat16 or float64");
  ddsm::resample(call.args);
  return call.y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CPU, m) { m.impl("resample", TORCH_BOX(&resample)); }
