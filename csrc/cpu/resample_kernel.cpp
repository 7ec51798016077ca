// Rows of pixels enlarged or averaged (see ddsm/resample.h).
#include "ddsm/resample.h"

#include "group_norm_strips.h"

namespace ddsm::DDSM_ISA {
namespace {

// gain times the mean of the pixels x, to all of y.
template <int Reads, int Writes, class T, class C = Compute<T>>
void resample_pixel(const T* const (&x)[Reads], C factor, int64_t channels, T* const (&y)[Writes]) {
  constexpr int64_t kLanes = Lanes<C>::kCount;
  const auto apply = [&](auto count, int64_t i, int64_t lanes) {
    constexpr int kCount = decltype(count)::kValue;
    Vec<C> sum[kCount];
    load_strip(x[0] + i, lanes, sum);
    for (int r = 1; r < Reads; ++r) {
      Vec<C> other[kCount];
      load_strip(x[r] + i, lanes, other);
      for (int v = 0; v < kCount; ++v) sum[v] += other[v];
    }
    for (int v = 0; v < kCount; ++v) sum[v] *= factor;
    for (int w = 0; w < Writes; ++w) store_strip(y[w] + i, lanes, sum);
  };
  if (channels < kLanes) return apply(Number<1>{}, 0, channels);
  for_each_strip<4, C>(channels, [&](auto count, int64_t i) { apply(count, i, kLanes); });
}

template <class T>
void resample_rows(const ResampleArgs& args, int64_t begin, int64_t end) {
  const int64_t c = args.channels, w = args.w_stride;
  const int64_t rows = args.up ? args.height : args.height / 2;
  const Compute<T> factor = static_cast<Compute<T>>(args.up ? args.gain : args.gain / 4);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(args.x) + row / rows * args.n_stride;
    if (args.up) {
      const int64_t y_row = 2 * args.width * c;
      x += row % rows * args.h_stride;
      T* y = static_cast<T*>(args.y) + row * 2 * y_row;
      for (int64_t j = 0; j < args.width; ++j, x += w, y += 2 * c) {
        const T* const from[1] = {x};
        T* const to[4] = {y, y + c, y + y_row, y + y_row + c};
        resample_pixel(from, factor, c, to);
      }
    } else {
      x += row % rows * 2 * args.h_stride;
      T* y = static_cast<T*>(args.y) + row * (args.width / 2) * c;
      for (int64_t j = 0; j < args.width / 2; ++j, x += 2 * w, y += c) {
        const T* const from[4] = {x, x + w, x + args.h_stride, x + args.h_stride + w};
        T* const to[1] = {y};
        resample_pixel(from, factor, c, to);
      }
    }
  }
}

}  // namespace

void resample_range(const ResampleArgs& args, int64_t begin, int64_t end) {
  if (args.dtype == DType::kFloat64) resample_rows<double>(args, begin, end);
  else if (args.dtype == DType::kBFloat16) resample_rows<Bf16>(args, begin, end);
  else resample_rows<float>(args, begin, end);
}

}  // namespace ddsm::DDSM_ISA
