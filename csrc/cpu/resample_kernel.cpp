// Rows of pixels enlarged or halved (see ddsm/resample.h): by blocks of 2x2 pixels, or each pixel
// of y a sum over the pixels of x that its filter meets.
#include "ddsm/resample.h"

#include "group_norm_strips.h"

namespace ddsm::DDSM_ISA {
namespace {

// gain times the mean of the pixels x, to all of y.
template <int Reads, int Writes, class T, class C = Compute<T>>
void resample_block(const T* const (&x)[Reads], C factor, int64_t channels, T* const (&y)[Writes]) {
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

// Rows of the smaller image.
template <class T>
void resample_blocks(const ResampleArgs& args, int64_t begin, int64_t end) {
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
        resample_block(from, factor, c, to);
      }
    } else {
      x += row % rows * 2 * args.h_stride;
      T* y = static_cast<T*>(args.y) + row * (args.width / 2) * c;
      for (int64_t j = 0; j < args.width / 2; ++j, x += 2 * w, y += c) {
        const T* const from[4] = {x, x + w, x + args.h_stride, x + args.h_stride + w};
        T* const to[1] = {y};
        resample_block(from, factor, c, to);
      }
    }
  }
}

constexpr int64_t kMostTaps = 4;

// What one row or column of y takes from those of x: weights are whole numbers.
struct Taps {
  int64_t count = 0;
  int64_t at[kMostTaps];
  int weight[kMostTaps];
};

Taps taps_of(const ResampleArgs& args, int64_t out, int64_t side) {
  const int64_t shift = args.taps == 4 && !args.ring ? 1 : 0;
  const int64_t first = args.up ? (out + shift) & 1 : 0, step = args.up ? 2 : 1;
  Taps taps;
  for (int64_t k = first; k < args.taps; k += step) {
    const int64_t at = args.up ? (out + shift - k) / 2 : 2 * out + k - shift;
    if ((args.up && out + shift < k) || at < 0 || at >= side) continue;
    taps.at[taps.count] = at;
    taps.weight[taps.count++] = args.taps == 4 && (k == 1 || k == 2) ? 3 : 1;
  }
  return taps;
}

template <class T, class C = Compute<T>>
struct Pixel {
  const T* x[kMostTaps * kMostTaps];
  C weight[kMostTaps * kMostTaps];
  int64_t count;
  const T* residual;
};

template <class T, class C = Compute<T>>
void resample_pixel(const Pixel<T>& from, C gain, int64_t channels, T* y) {
  constexpr int64_t kLanes = Lanes<C>::kCount;
  const auto apply = [&](auto count, int64_t i, int64_t lanes) {
    constexpr int kCount = decltype(count)::kValue;
    Vec<C> sum[kCount] = {};
    for (int64_t r = 0; r < from.count; ++r) {
      Vec<C> value[kCount];
      load_strip(from.x[r] + i, lanes, value);
      for (int v = 0; v < kCount; ++v) sum[v] += value[v] * from.weight[r];
    }
    if (from.residual) {
      Vec<C> value[kCount];
      load_strip(from.residual + i, lanes, value);
      for (int v = 0; v < kCount; ++v) sum[v] += value[v];
    }
    for (int v = 0; v < kCount; ++v) sum[v] *= gain;
    store_strip(y + i, lanes, sum);
  };
  if (channels < kLanes) return apply(Number<1>{}, 0, channels);
  for_each_strip<4, C>(channels, [&](auto count, int64_t i) { apply(count, i, kLanes); });
}

// Rows of y.
template <class T>
void resample_pixels(const ResampleArgs& args, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const int64_t rows = args.out_side(args.height), columns = args.out_side(args.width);
  // Both directions together: of the sum of a filter's weights, squared, up four times.
  const C unit = C(args.up ? 4 : 1) / C(args.taps == 4 ? 64 : 4);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / rows, i = row % rows;
    const Taps high = taps_of(args, i, args.height);
    const T* x = static_cast<const T*>(args.x) + image * args.n_stride;
    const T* residual = static_cast<const T*>(args.residual);
    if (residual) residual += image * args.residual_n_stride + i * args.residual_h_stride;
    T* y = static_cast<T*>(args.y) + row * columns * args.channels;
    for (int64_t j = 0; j < columns; ++j, y += args.channels) {
      const Taps wide = taps_of(args, j, args.width);
      Pixel<T> pixel;
      pixel.count = 0;
      for (int64_t a = 0; a < high.count; ++a) {
        for (int64_t b = 0; b < wide.count; ++b, ++pixel.count) {
          pixel.x[pixel.count] = x + high.at[a] * args.h_stride + wide.at[b] * args.w_stride;
          pixel.weight[pixel.count] = C(high.weight[a] * wide.weight[b]) * unit;
        }
      }
      pixel.residual = residual ? residual + j * args.residual_w_stride : nullptr;
      resample_pixel(pixel, static_cast<C>(args.gain), args.channels, y);
    }
  }
}

template <class T>
void resample_rows(const ResampleArgs& args, int64_t begin, int64_t end) {
  args.is_blockwise() ? resample_blocks<T>(args, begin, end)
                      : resample_pixels<T>(args, begin, end);
}

}  // namespace

void resample_range(const ResampleArgs& args, int64_t begin, int64_t end) {
  if (args.dtype == DType::kFloat64) resample_rows<double>(args, begin, end);
  else if (args.dtype == DType::kBFloat16) resample_rows<Bf16>(args, begin, end);
  else resample_rows<float>(args, begin, end);
}

}  // namespace ddsm::DDSM_ISA
