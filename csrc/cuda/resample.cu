// resample on CUDA: a thread for 16 bytes of a pixel of the smaller image and for the 2x2 pixels of
// the larger one that belong to it.
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

// True if every pixel of x and y can be read and written as packs of 16 bytes.
bool takes_packs(const ResampleArgs& args, int64_t pack) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  // The stride of a dimension of one says nothing.
  const auto apart = [&](int64_t size, int64_t stride) { return size == 1 || stride % pack == 0; };
  return args.channels % pack == 0 && apart(args.images, args.n_stride) &&
         apart(args.height, args.h_stride) && apart(args.width, args.w_stride) &&
         aligned(args.x) && aligned(args.y);
}

template <class T, int V>
const char* run(const ResampleArgs& args, bool overlaps, void* stream) {
  const int64_t scale = args.up ? 1 : 2, packs = args.channels / V;
  const int64_t height = args.height / scale, width = args.width / scale;
  const int64_t items = args.images * height * width * packs;
  if (items > kMostRows) return "more than 2^31 packs of 16 bytes";
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

template <class T>
const char* run(const ResampleArgs& args, bool overlaps, void* stream) {
  constexpr int kPack = 16 / sizeof(T);
  return takes_packs(args, kPack) ? run<T, kPack>(args, overlaps, stream)
                                  : run<T, 1>(args, overlaps, stream);
}

}  // namespace

const char* resample_cuda(const ResampleArgs& args, bool overlaps, void* stream) {
  if (args.images == 0 || args.height == 0 || args.width == 0 || args.channels == 0) {
    return nullptr;
  }
  if (!args.up && (args.height % 2 != 0 || args.width % 2 != 0)) {
    return "an odd height or width has no means of 2x2 pixels";
  }
  switch (args.dtype) {
    case DType::kFloat32:
      return run<float>(args, overlaps, stream);
    case DType::kBFloat16:
      return run<BFloat16>(args, overlaps, stream);
    case DType::kFloat16:
      return run<Float16>(args, overlaps, stream);
    case DType::kFloat64:
      break;
  }
  return "no CUDA kernel for float64";
}

}  // namespace ddsm
