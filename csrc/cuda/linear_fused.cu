// sliced_linear_fused on CUDA: from the arguments to a kernel, parameters and launches.
#include "ddsm/linear_fused_cuda.h"

#include "linear_fused_kernels.cuh"

namespace ddsm {
namespace {

static_assert(kMostLinearParts == kLinearPartsALaunch);
// At so many rows of x a weight still passes through the registers of two blocks at most.
constexpr int64_t kFewRows = 16;
constexpr int64_t kMostStride = (int64_t(1) << 31) - 1;

bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

const char* refusal(const LinearFusedCudaArgs& args) {
  if (args.rows > kMostRows) return kTooManyRows;
  if (args.c > kMostRows) return "more than 2^31 features";
  if (args.shift && args.part_count > 1) return "a shift beside several weights";
  for (int64_t i = 0; i < args.part_count; ++i) {
    const LinearCudaPart& part = args.parts[i];
    if (part.c_out + part.column > kMostRows) return "more than 2^31 columns";
    if (part.out_stride > kMostStride || part.in_stride > kMostStride) {
      return "elements of a weight lie more than 2^31 apart";
    }
  }
  return nullptr;
}

LinearPart part_of(const LinearCudaPart& part, DType weight_dtype) {
  const int64_t lanes = 16 / element_bytes(weight_dtype);
  const bool vector = is_aligned(part.weight) && part.in_stride == 1 &&
                      (part.out_stride % lanes == 0 || part.c_out == 1);
  return {part.weight,
          part.bias,
          static_cast<int32_t>(part.out_stride),
          static_cast<int32_t>(part.in_stride),
          static_cast<int32_t>(part.c_out),
          static_cast<int32_t>(part.column),
          0,
          vector};
}

// Of parts [first, first + count).
LinearParams params_of(const LinearFusedCudaArgs& args, int64_t first, int64_t count) {
  const int64_t lanes = 16 / element_bytes(args.dtype);
  LinearParams p{};
  p.x = args.x;
  p.shift = args.shift;
  p.y = args.y;
  p.x_stride = args.x_stride;
  p.shift_stride = args.shift_stride;
  p.y_stride = args.y_stride;
  p.rows = static_cast<int32_t>(args.rows);
  p.c = static_cast<int32_t>(args.c);
  p.part_count = static_cast<int32_t>(count);
  p.x_vector = is_aligned(args.x) && (args.x_stride % lanes == 0 || args.rows == 1);
  p.y_vector = is_aligned(args.y) && (args.y_stride % lanes == 0 || args.rows == 1);
  p.silu = args.silu;
  p.overlaps = args.overlaps;
  for (int64_t i = 0; i < count; ++i) {
    p.parts[i] = part_of(args.parts[first + i], args.weight_dtype);
    p.y_vector &= p.parts[i].column % lanes == 0;
  }
  return p;
}

template <class T, class W>
const char* run(LinearParams& p, bool ieee, void* stream) {
  if (p.rows == 1) return launch_linear_rows<T, W, 1>(p, stream);
  if (p.rows <= kFewRows) return launch_linear_rows<T, W, kLinearImages>(p, stream);
  if constexpr (sizeof(T) == 4) {
    if (ieee) return launch_linear_tile<FmaUnits, W, false>(p, stream);
  }
  if constexpr (sizeof(T) == sizeof(W)) {
    bool aligned = p.x_vector;
    for (int32_t i = 0; i < p.part_count; ++i) aligned &= p.parts[i].vector;
    if (aligned) return launch_linear_tile<TensorCores<T>, W, true>(p, stream);
  }
  return launch_linear_tile<TensorCores<T>, W, false>(p, stream);
}

const char* run(LinearParams& p, const LinearFusedCudaArgs& args, void* stream) {
  const bool wide = args.weight_dtype == DType::kFloat32;
  switch (args.dtype) {
    case DType::kBFloat16:
      return wide ? run<BFloat16, float>(p, args.ieee, stream)
                  : run<BFloat16, BFloat16>(p, args.ieee, stream);
    case DType::kFloat16:
      return wide ? run<Float16, float>(p, args.ieee, stream)
                  : run<Float16, Float16>(p, args.ieee, stream);
    default:
      return run<float, float>(p, args.ieee, stream);
  }
}

}  // namespace

const char* linear_fused_cuda(const LinearFusedCudaArgs& args, void* stream) {
  if (args.rows == 0) return nullptr;
  if (multiprocessors() < 1) return "no CUDA device answers";
  if (const char* reason = refusal(args)) return reason;
  for (int64_t first = 0; first < args.part_count; first += kLinearPartsALaunch) {
    const int64_t left = args.part_count - first;
    LinearParams p = params_of(args, first, left < kLinearPartsALaunch ? left
                                                                       : kLinearPartsALaunch);
    if (const char* error = run(p, args, stream)) return error;
  }
  return nullptr;
}

}  // namespace ddsm
