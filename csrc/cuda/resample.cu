// resample on CUDA. 2 taps without a residual: a thread for 16 bytes of a pixel of the smaller
// image and for the 2x2 pixels of the larger one that belong to it. Else a thread for 16 bytes of a
// pixel of y, whose up to 4x4 pixels of x neighbours find in the L1.
#include "ddsm/resample_cuda.h"

#include "index_maps.h"
#include "launch.cuh"
#include "packs.cuh"
#include "tile_choice.h"

namespace ddsm {
namespace {

constexpr int kThreads = 256;

template <class T>
struct ResampleParams {
  const T* x;
  T* y;
  int64_t n_stride, h_stride, w_stride;  // of x
  int64_t channels;
  int32_t items;
  Divider packs, width, height;  // packs of a pixel; of the smaller image
  float gain;
};

// V adjacent channels of a pixel of the smaller image: `row` counts the rows of all images.
struct ResampleItem {
  int32_t image, row, row_of_image, column, channel;

  template <int V, class T>
  static DDSM_DEVICE ResampleItem of(const ResampleParams<T>& p, int32_t item) {
    const int32_t pixel = p.packs.quotient(item), row = p.width.quotient(pixel);
    const int32_t image = p.height.quotient(row);
    return {image, row, row - image * static_cast<int32_t>(p.height.divisor),
            pixel - row * static_cast<int32_t>(p.width.divisor),
            (item - pixel * static_cast<int32_t>(p.packs.divisor)) * V};
  }
};

template <class T, int V>
DDSM_KERNEL(kThreads, 4)
resample_up_kernel(const ResampleParams<T> p) {
  ptx::wait_for_kernel_before();
  ptx::allow_kernel_after();
  const int64_t index = int64_t(ptx::block_index()) * kThreads + ptx::thread_index();
  if (index >= p.items) return;
  const auto item = ResampleItem::of<V>(p, static_cast<int32_t>(index));
  float value[V];
  widen<T>(load<T, V>(p.x + item.image * p.n_stride + item.row_of_image * p.h_stride +
                      item.column * p.w_stride + item.channel),
           value);
#pragma unroll
  for (int i = 0; i < V; ++i) value[i] *= p.gain;
  const Row<T, V> out = narrow<T>(value);
  const int64_t line = 2 * int64_t(p.width.divisor) * p.channels;
  T* y = p.y + 2 * (item.row * line + item.column * p.channels) + item.channel;
  store<T, V>(y, out);
  store<T, V>(y + p.channels, out);
  store<T, V>(y + line, out);
  store<T, V>(y + line + p.channels, out);
}

template <class T, int V>
DDSM_KERNEL(kThreads, 4)
resample_down_kernel(const ResampleParams<T> p) {
  ptx::wait_for_kernel_before();
  ptx::allow_kernel_after();
  const int64_t index = int64_t(ptx::block_index()) * kThreads + ptx::thread_index();
  if (index >= p.items) return;
  const auto item = ResampleItem::of<V>(p, static_cast<int32_t>(index));
  const T* x = p.x + item.image * p.n_stride + item.channel +
               2 * (item.row_of_image * p.h_stride + item.column * p.w_stride);
  const Row<T, V> rows[4] = {load<T, V>(x), load<T, V>(x + p.w_stride), load<T, V>(x + p.h_stride),
                             load<T, V>(x + p.h_stride + p.w_stride)};
  float sum[V] = {};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    float value[V];
    widen<T>(rows[k], value);
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += value[i];
  }
#pragma unroll
  for (int i = 0; i < V; ++i) sum[i] *= p.gain;  // a quarter of the caller's
  const int64_t pixel = int64_t(item.row) * p.width.divisor + item.column;
  store<T, V>(p.y + pixel * p.channels + item.channel, narrow<T>(sum));
}

template <class T>
struct FilterParams {
  const T *x, *residual;
  T* y;
  int64_t n_stride, h_stride, w_stride;  // of x
  int64_t residual_n_stride, residual_h_stride, residual_w_stride;
  int64_t channels;
  int32_t items, height, width;         // height and width: of x
  Divider packs, out_width, out_height;  // packs of a pixel
  int32_t taps, shift;                   // shift: zeros before x
  bool up;
  float gain, residual_gain;
};

// The r-th row or column of x that one of y takes from: where it lies, and its weight, 0 outside.
struct FilterTap {
  int32_t at;
  float weight;

  template <class T>
  static DDSM_DEVICE FilterTap of(const FilterParams<T>& p, int32_t out, int r, int32_t side) {
    const int32_t shifted = out + p.shift;
    const int32_t k = p.up ? (shifted & 1) + 2 * r : r;
    const int32_t at = p.up ? (shifted >> 1) - r : 2 * out + r - p.shift;
    const float weight = p.taps == 4 && (k == 1 || k == 2) ? 3.0f : 1.0f;
    return {at, at >= 0 && at < side ? weight : 0.0f};
  }
};

// kReads: rows, and columns, of x that a pixel of y takes from.
template <class T, int V, int kReads>
DDSM_KERNEL(kThreads, 2)
resample_filter_kernel(const FilterParams<T> p) {
  ptx::wait_for_kernel_before();
  ptx::allow_kernel_after();
  const int64_t index = int64_t(ptx::block_index()) * kThreads + ptx::thread_index();
  if (index >= p.items) return;
  const auto item = static_cast<int32_t>(index);
  const int32_t pixel = p.packs.quotient(item), row = p.out_width.quotient(pixel);
  const int32_t image = p.out_height.quotient(row);
  const int32_t i = row - image * static_cast<int32_t>(p.out_height.divisor);
  const int32_t j = pixel - row * static_cast<int32_t>(p.out_width.divisor);
  const int32_t channel = (item - pixel * static_cast<int32_t>(p.packs.divisor)) * V;
  const T* x = p.x + image * p.n_stride + channel;
  float sum[V] = {};
#pragma unroll
  for (int a = 0; a < kReads; ++a) {
    const FilterTap high = FilterTap::of(p, i, a, p.height);
#pragma unroll
    for (int b = 0; b < kReads; ++b) {
      const FilterTap wide = FilterTap::of(p, j, b, p.width);
      const float weight = high.weight * wide.weight;
      if (weight == 0) continue;
      float value[V];
      widen<T>(load<T, V>(x + high.at * p.h_stride + wide.at * p.w_stride), value);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += weight * value[v];
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] *= p.gain;
  if (p.residual) {
    float value[V];
    widen<T>(load<T, V>(p.residual + image * p.residual_n_stride + i * p.residual_h_stride +
                        j * p.residual_w_stride + channel),
             value);
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += p.residual_gain * value[v];
  }
  store<T, V>(p.y + int64_t(pixel) * p.channels + channel, narrow<T>(sum));
}

// True if every pixel of x, y and the residual can be read and written as packs of 16 bytes.
bool takes_packs(const ResampleArgs& args, int64_t pack) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  // The stride of a dimension of one says nothing.
  const auto apart = [&](int64_t size, int64_t stride) { return size == 1 || stride % pack == 0; };
  const bool residual = !args.residual ||
                        (aligned(args.residual) && apart(args.images, args.residual_n_stride) &&
                         apart(args.out_side(args.height), args.residual_h_stride) &&
                         apart(args.out_side(args.width), args.residual_w_stride));
  return residual && args.channels % pack == 0 && apart(args.images, args.n_stride) &&
         apart(args.height, args.h_stride) && apart(args.width, args.w_stride) &&
         aligned(args.x) && aligned(args.y);
}

constexpr const char* kTooMany = "more than 2^31 packs of 16 bytes";

template <class T, int V>
const char* run_filter(const ResampleArgs& args, bool overlaps, void* stream) {
  const int64_t packs = args.channels / V, height = args.out_side(args.height);
  const int64_t width = args.out_side(args.width), items = args.images * height * width * packs;
  if (items > kMostRows || args.height > kMostRows || args.width > kMostRows) return kTooMany;
  if (items == 0) return nullptr;
  const double unit = (args.up ? 4.0 : 1.0) / (args.taps == 4 ? 64.0 : 4.0);
  const FilterParams<T> p{static_cast<const T*>(args.x),
                          static_cast<const T*>(args.residual),
                          static_cast<T*>(args.y),
                          args.n_stride,
                          args.h_stride,
                          args.w_stride,
                          args.residual_n_stride,
                          args.residual_h_stride,
                          args.residual_w_stride,
                          args.channels,
                          static_cast<int32_t>(items),
                          static_cast<int32_t>(args.height),
                          static_cast<int32_t>(args.width),
                          Divider(packs),
                          Divider(width),
                          Divider(height),
                          args.taps,
                          args.taps == 4 && !args.ring ? 1 : 0,
                          args.up,
                          static_cast<float>(args.gain * unit),
                          static_cast<float>(args.gain)};
  const LaunchShape shape{blocks_of(items, kThreads), 1, kThreads, 0, overlaps};
  const char* name = "resample_filter";
  switch (args.up ? args.taps / 2 : args.taps) {
    case 1:
      return launch(name, resample_filter_kernel<T, V, 1>, shape, stream, p);
    case 2:
      return launch(name, resample_filter_kernel<T, V, 2>, shape, stream, p);
    default:
      return launch(name, resample_filter_kernel<T, V, 4>, shape, stream, p);
  }
}

template <class T, int V>
const char* run(const ResampleArgs& args, bool overlaps, void* stream) {
  if (!args.is_blockwise()) return run_filter<T, V>(args, overlaps, stream);
  const int64_t scale = args.up ? 1 : 2, packs = args.channels / V;
  const int64_t height = args.height / scale, width = args.width / scale;
  const int64_t items = args.images * height * width * packs;
  if (items > kMostRows) return kTooMany;
  const ResampleParams<T> p{static_cast<const T*>(args.x),
                            static_cast<T*>(args.y),
                            args.n_stride,
                            args.h_stride,
                            args.w_stride,
                            args.channels,
                            static_cast<int32_t>(items),
                            Divider(packs),
                            Divider(width),
                            Divider(height),
                            static_cast<float>(args.up ? args.gain : args.gain / 4)};
  const LaunchShape shape{blocks_of(items, kThreads), 1, kThreads, 0, overlaps};
  return args.up ? launch("resample_up", resample_up_kernel<T, V>, shape, stream, p)
                 : launch("resample_down", resample_down_kernel<T, V>, shape, stream, p);
}

}  // namespace

const char* resample_cuda(const ResampleArgs& args, bool overlaps, void* stream) {
  if (args.images == 0 || args.height == 0 || args.width == 0 || args.channels == 0) {
    return nullptr;
  }
  if (!args.up && (args.height % 2 != 0 || args.width % 2 != 0)) {
    return "an odd height or width cannot be halved";
  }
  return with_number(args.dtype, [&](auto number) {
    using T = decltype(number);
    constexpr int kPack = 16 / sizeof(T);
    return takes_packs(args, kPack) ? run<T, kPack>(args, overlaps, stream)
                                    : run<T, 1>(args, overlaps, stream);
  });
}

}  // namespace ddsm
