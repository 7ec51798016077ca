// sinusoidal_embedding on CUDA: checks, allocates, fills Args, launches on torch's current stream.
#include <torch/csrc/stable/library.h>

#include "cuda_device.h"
#include "ddsm/sinusoidal_embedding_cuda.h"

namespace {

using namespace ddsm::binding;
using ddsm::TimeType;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

constexpr const char* kOp = "sinusoidal_embedding";

TimeType time_type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return TimeType::kFloat32;
    case ScalarType::Double:
      return TimeType::kFloat64;
    case ScalarType::Long:
      return TimeType::kInt64;
    default:
      STD_TORCH_CHECK(false, kOp, ": t is not float32, float64 or int64");
  }
  return TimeType::kFloat32;
}

Tensor sinusoidal_embedding(const Tensor& t, int64_t dim, bool halves,
                            const std::optional<Tensor>& table, const Tensor& like, bool swapped,
                            double freq_shift, const std::optional<Tensor>& frequencies) {
  check_same_device(kOp, like, t);
  STD_TORCH_CHECK(t.dim() == 1, kOp, ": t has ", t.dim(), " dimensions, need 1");
  STD_TORCH_CHECK(dim >= 2 && dim % 2 == 0 && dim <= 1 << 20, kOp, ": dim is ", dim,
                  ", need an even number from 2 to 2^20");
  const int64_t n = t.size(0);
  const DeviceGuard guard(like.get_device_index());
  Tensor y = empty_contiguous(like, like.scalar_type(), {n, dim});
  ddsm::SinusoidalCudaArgs args{};
  args.dtype = dtype_of(like, kOp);
  args.table_dtype = args.dtype;
  STD_TORCH_CHECK(args.dtype != ddsm::DType::kFloat64, kOp,
                  ": float64 is not supported; need float32, bfloat16 or float16");
  args.t_type = time_type_of(t);
  args.halves = halves;
  args.swapped = swapped;
  args.freq_shift = freq_shift;
  STD_TORCH_CHECK(halves || !(swapped || freq_shift != 0 || frequencies.has_value()), kOp,
                  ": sines and cosines are in turn; need halves beside the other settings");
  STD_TORCH_CHECK(2 * freq_shift < static_cast<double>(dim), kOp, ": freq_shift is ", freq_shift,
                  ", need less than half of dim, ", dim);
  args.t = t.const_data_ptr();
  args.t_stride = t.stride(0);
  args.n = n;
  args.dim = dim;
  if (table.has_value()) {
    check_same_device(kOp, like, *table);
    args.table_dtype = dtype_of(*table, kOp);
    args.table = table->const_data_ptr();
    STD_TORCH_CHECK(table->dim() == 2 && table->size(1) == dim && table->is_contiguous() &&
                        args.table_dtype != ddsm::DType::kFloat64 &&
                        reinterpret_cast<uintptr_t>(args.table) % 8 == 0,
                    kOp, ": the table is not [rows, ", dim,
                    "] float32, bfloat16 or float16, contiguous at a multiple of 8 bytes");
    args.rows = table->size(0);
  }
  if (frequencies.has_value()) {
    check_same_device(kOp, like, *frequencies);
    STD_TORCH_CHECK(frequencies->dim() == 1 && frequencies->size(0) == dim / 2 &&
                        frequencies->scalar_type() == ScalarType::Float &&
                        frequencies->is_contiguous(),
                    kOp, ": frequencies are not [", dim / 2, "] float32, contiguous");
    args.frequencies = static_cast<const float*>(frequencies->const_data_ptr());
  }
  args.y = y.mutable_data_ptr();
  check_launch(kOp, ddsm::sinusoidal_embedding_cuda(args, stream_of(like)));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sinusoidal_embedding", TORCH_BOX(&sinusoidal_embedding));
}
