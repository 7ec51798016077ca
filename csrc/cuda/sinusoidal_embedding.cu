// sinusoidal_embedding on CUDA: one thread for a sine and its cosine.
#include "ddsm/sinusoidal_embedding_cuda.h"

#include "index_maps.h"
#include "launch.cuh"
#include "tile_choice.h"

namespace ddsm {
namespace {

constexpr int kThreads = 128;
constexpr float kLogBase = 9.210340371976184f;  // log(10000)
constexpr float kTwoPi = 6.283185307179586f;

struct SinusoidalParams {
  const void *t, *table;
  const float* frequencies;
  void* y;
  int64_t t_stride, pairs;  // pairs: n * half
  Divider half;             // pairs of a row
  int32_t dim;
  double last_row;  // of the table; negative: there is none
  float exponents;  // 2 i / this is the power of 10000
  bool halves, swapped;
  TimeType t_type;
  DType table_dtype;
};

// Sine and cosine of any angle below 10^6, rounded from values good to 10^-10: float's own range
// reduction would need local memory.
DDSM_DEVICE Pack<float, 2> sin_cos(float angle) {
  const double x = angle;
  const double quarters = rint(x * 0.6366197723675814);
  // pi / 2 in two parts, the first so short that its product is exact.
  const double r = (x - quarters * 1.57079632673412561417) - quarters * 6.07710050650619224932e-11;
  const double s = r * r;
  double sine = -2.505210838544172e-8;  // the Taylor series
  sine = sine * s + 2.755731922398589e-6;
  sine = sine * s - 1.984126984126984e-4;
  sine = sine * s + 8.333333333333333e-3;
  sine = sine * s - 1.666666666666667e-1;
  sine = r + r * s * sine;
  double cosine = 2.08767569878681e-9;
  cosine = cosine * s - 2.755731922398589e-7;
  cosine = cosine * s + 2.48015873015873e-5;
  cosine = cosine * s - 1.388888888888889e-3;
  cosine = cosine * s + 4.166666666666667e-2;
  cosine = 1 + s * (cosine * s - 0.5);
  const double quadrant = quarters - 4 * floor(quarters * 0.25);
  const bool swapped = quadrant == 1 || quadrant == 3;
  const double a = swapped ? cosine : sine, b = swapped ? sine : cosine;
  return {static_cast<float>(quadrant >= 2 ? -a : a),
          static_cast<float>(quadrant == 1 || quadrant == 2 ? -b : b)};
}

DDSM_DEVICE double time_at(const SinusoidalParams& p, int64_t index) {
  const int64_t at = index * p.t_stride;
  switch (p.t_type) {
    case TimeType::kFloat32:
      return ptx::load_global(static_cast<const float*>(p.t) + at);
    case TimeType::kFloat64:
      return ptx::load_global(static_cast<const double*>(p.t) + at);
    default:
      return static_cast<double>(ptx::load_global(static_cast<const int64_t*>(p.t) + at));
  }
}

// Sine and cosine i of a row.
template <class T>
DDSM_DEVICE Pack<float, 2> load_pair(const SinusoidalParams& p, int64_t row, int32_t i) {
  const T* data = static_cast<const T*>(p.table) + row * p.dim;
  if (p.halves) {
    const auto half = static_cast<int32_t>(p.half.divisor);
    const int32_t sine = p.swapped ? i : half + i, cosine = p.swapped ? half + i : i;
    return {to_float(ptx::load_global(data + sine)), to_float(ptx::load_global(data + cosine))};
  }
  const auto two = ptx::load_global(reinterpret_cast<const Pack<T, 2>*>(data) + i);
  return {to_float(two.lane[0]), to_float(two.lane[1])};
}

DDSM_DEVICE Pack<float, 2> table_pair(const SinusoidalParams& p, int64_t row, int32_t i) {
  switch (p.table_dtype) {
    case DType::kBFloat16:
      return load_pair<BFloat16>(p, row, i);
    case DType::kFloat16:
      return load_pair<Float16>(p, row, i);
    default:
      return load_pair<float>(p, row, i);
  }
}

template <class T>
DDSM_KERNEL(kThreads, 1)
sinusoidal_kernel(const SinusoidalParams p) {
  ptx::wait_for_kernel_before();
  ptx::allow_kernel_after();
  const int64_t pair = int64_t(ptx::block_index()) * kThreads + ptx::thread_index();
  if (pair >= p.pairs) return;
  const int32_t row = p.half.quotient(static_cast<int32_t>(pair));
  const int32_t i = static_cast<int32_t>(pair) - row * static_cast<int32_t>(p.half.divisor);
  const double t = time_at(p, row);
  Pack<float, 2> value;
  if (t >= 0 && t <= p.last_row && t == floor(t)) {
    value = table_pair(p, static_cast<int64_t>(t), i);
  } else {
    // The operations and their order are those of ops/embedding.py.
    const float exponent = static_cast<float>(2 * i) / p.exponents * kLogBase;
    const float f =
        p.frequencies ? kTwoPi * ptx::load_global(p.frequencies + i) : expf(-exponent);
    value = sin_cos(static_cast<float>(t) * f);
  }
  Pack<T, 2> rounded;
  from_float(value.lane[0], &rounded.lane[0]);
  from_float(value.lane[1], &rounded.lane[1]);
  if (p.halves) {
    T* y = static_cast<T*>(p.y) + int64_t(row) * p.dim + i;
    const T sine = rounded.lane[0], cosine = rounded.lane[1];
    ptx::store_global(y, p.swapped ? sine : cosine);
    ptx::store_global(y + p.half.divisor, p.swapped ? cosine : sine);
    return;
  }
  ptx::store_global(static_cast<Pack<T, 2>*>(p.y) + pair, rounded);
}

}  // namespace

const char* sinusoidal_embedding_cuda(const SinusoidalCudaArgs& args, void* stream) {
  const int64_t pairs = args.n * (args.dim / 2);
  if (pairs == 0) return nullptr;
  if (pairs > kMostRows) return "more than 2^32 numbers";
  const SinusoidalParams p{args.t,
                           args.table,
                           args.frequencies,
                           args.y,
                           args.t_stride,
                           pairs,
                           Divider(args.dim / 2),
                           static_cast<int32_t>(args.dim),
                           args.table ? static_cast<double>(args.rows - 1) : -1.0,
                           static_cast<float>(static_cast<double>(args.dim) - 2 * args.freq_shift),
                           args.halves,
                           args.swapped,
                           args.t_type,
                           args.table_dtype};
  const char* name = "sinusoidal_embedding";
  const LaunchShape shape{blocks_of(pairs, kThreads), 1, kThreads, 0};
  switch (args.dtype) {
    case DType::kBFloat16:
      return launch(name, sinusoidal_kernel<BFloat16>, shape, stream, p);
    case DType::kFloat16:
      return launch(name, sinusoidal_kernel<Float16>, shape, stream, p);
    default:
      return launch(name, sinusoidal_kernel<float>, shape, stream, p);
  }
}

}  // namespace ddsm
