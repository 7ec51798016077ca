// Group norm with fused SiLU on CUDA, forward and backward, for one or two NHWC sources. No
// atomics: every sum has one order.
//
//   moments     (pixel block, channels)      mean and squared deviations, unless a convolution left
//                                           them
//   merge       (image, group)              mean and rstd by Chan's formula in double
//   apply       (pixel block, channels)     y = act((x - mean) * rstd * gamma + beta)
//
//   grad_sums   (pixel block, channels)      sums of du and du * xhat, with u the input of act
//   grad_merge  (image, group)              their means over the group, weighted by gamma
//   grad_params (32 channels)               dL/dgamma and dL/dbeta
//   grad_apply  (pixel block, channels)     dL/dx = rstd * (du * gamma - means of the group)
#include "ddsm/group_norm_cuda.h"

#include <cmath>

#include "index_maps.h"
#include "launch.cuh"
#include "moments.h"

namespace ddsm {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 32;                // a warp reads one pixel's adjacent channels
constexpr int kRows = kThreads / kLanes;  // pixels that a block reads at a time
constexpr int kMergeThreads = 128;
// What an apply block covers; its channels' coefficients lie in shared memory.
constexpr int kApplyPixels = 64, kApplyChannels = 256;

// Two sums of a channel, or two means of a group.
struct alignas(8) Pair {
  float first, second;
};

// What the kernels need of a source; first_channel counts over both sources.
template <class T>
struct Source {
  const T* x;
  const T* grad_y;
  T* out;  // y or grad_x
  int64_t c, x_stride, grad_stride, first_channel, param_offset;
};

// What they need of the whole.
template <class P>
struct Norm {
  int64_t n, pixels, groups, group_size;
  const P *weight, *bias;
  float *mean, *rstd;  // [n, groups]
  bool silu;
};

int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

DDSM_DEVICE int lane_index() { return ptx::thread_index() % kLanes; }
DDSM_DEVICE int row_index() { return ptx::thread_index() / kLanes; }

// Shared memory as an array of T.
template <class T>
DDSM_DEVICE T get(int64_t index) {
  return ptx::load_shared<T>(static_cast<uint32_t>(index * sizeof(T)));
}
template <class T>
DDSM_DEVICE void put(int64_t index, T value) {
  ptx::store_shared(static_cast<uint32_t>(index * sizeof(T)), value);
}

// The sums over the block's rows, for row 0. `own`: of the thread's V channels.
template <int V>
DDSM_DEVICE void sum_rows(Pair (&own)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) put<Pair>(v * kThreads + ptx::thread_index(), own[v]);
  ptx::sync_threads();
  if (row_index() != 0) return;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    for (int i = 1; i < kRows; ++i) {
      const Pair other = get<Pair>(v * kThreads + i * kLanes + lane_index());
      own[v].first += other.first;
      own[v].second += other.second;
    }
  }
}

// The part of an image that a block of threads sums, and the thread's first channel in it.
struct Part {
  int64_t image, block, first_pixel, rows, channel;

  template <int V>
  static DDSM_DEVICE Part of(int64_t pixels, int64_t channels) {
    const auto channel_blocks = static_cast<unsigned>((channels + kLanes * V - 1) / (kLanes * V));
    const auto image_blocks = static_cast<unsigned>(moment_blocks(pixels));
    const unsigned index = ptx::block_index() / channel_blocks;
    const int64_t image = index / image_blocks, block = index % image_blocks;
    return {image, block, image * pixels + moment_block_begin(pixels, image, block),
            moment_block_pixels(pixels, image, block),
            (int64_t(ptx::block_index() % channel_blocks) * kLanes + lane_index()) * V};
  }
  // Where its result of `channel` lies in [n, moment blocks, channels].
  DDSM_DEVICE int64_t place(int64_t pixels, int64_t channels) const {
    return (image * moment_blocks(pixels) + block) * channels + channel;
  }
};

template <class T, int V>
DDSM_DEVICE Pack<T, V> load(const T* data) {
  return ptx::load_global(reinterpret_cast<const Pack<T, V>*>(data));
}

// moments [n, moment blocks, source.c]
template <class T, int V>
DDSM_KERNEL(kThreads, 1)
group_norm_moments_kernel(Source<T> source, int64_t pixels, Moments* moments) {
  const Part part = Part::of<V>(pixels, source.c);
  const bool active = part.channel < source.c && part.rows > 0;
  float shift[V];
  Pair sums[V] = {};
  if (active) {
    // Deviations from the block's first pixel: data, so the squares cannot cancel badly.
    const T* x = source.x + part.first_pixel * source.x_stride + part.channel;
    const auto first = load<T, V>(x);
#pragma unroll
    for (int v = 0; v < V; ++v) shift[v] = to_float(first.lane[v]);
    for (int64_t r = row_index(); r < part.rows; r += kRows) {
      const auto pack = load<T, V>(x + r * source.x_stride);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float d = to_float(pack.lane[v]) - shift[v];
        sums[v].first += d;
        sums[v].second += d * d;
      }
    }
  }
  sum_rows<V>(sums);
  if (!active || row_index() != 0) return;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const float delta = sums[v].first / static_cast<float>(part.rows);
    const float m2 = sums[v].second - sums[v].first * delta;
    ptx::store_global(moments + part.place(pixels, source.c) + v,
                      Moments{shift[v] + delta, m2 > 0 ? m2 : 0.0f});
  }
}

// The sum of `value` over the block, in a fixed order, for every thread.
DDSM_DEVICE double block_sum(double value) {
  const unsigned thread = ptx::thread_index();
  put<double>(thread, value);
  ptx::sync_threads();
  for (unsigned half = kMergeThreads / 2; half > 0; half /= 2) {
    if (thread < half) put<double>(thread, get<double>(thread) + get<double>(thread + half));
    ptx::sync_threads();
  }
  const double total = get<double>(0);
  ptx::sync_threads();
  return total;
}

// Two arrays [n, moment blocks, c of a source] as one.
template <class V>
struct Joined {
  const V* of[2];
  int64_t c[2];

  DDSM_DEVICE V at(int64_t blocks, int64_t image, int64_t block, int64_t channel) const {
    // Not by an index: it would copy the parameters to local memory.
    const bool second = channel >= c[0];
    const int64_t own = channel - (second ? c[0] : 0), count = second ? c[1] : c[0];
    return ptx::load_global((second ? of[1] : of[0]) + (image * blocks + block) * count + own);
  }
};

DDSM_KERNEL(kMergeThreads, 1)
group_norm_merge_kernel(Joined<Moments> moments, Norm<float> norm, double eps) {
  const int64_t blocks = moment_blocks(norm.pixels), parts = blocks * norm.group_size;
  const double count = static_cast<double>(norm.pixels) * norm.group_size;
  const int64_t i = ptx::block_index();
  const int64_t image = i / norm.groups, first_channel = i % norm.groups * norm.group_size;
  auto rows = [&](int64_t part) {
    return static_cast<double>(moment_block_pixels(norm.pixels, image, part / norm.group_size));
  };
  auto at = [&](int64_t part) {
    return moments.at(blocks, image, part / norm.group_size,
                      first_channel + part % norm.group_size);
  };
  double sum = 0;
  for (int64_t part = ptx::thread_index(); part < parts; part += kMergeThreads) {
    if (rows(part) > 0) sum += rows(part) * at(part).mean;
  }
  const double mean = block_sum(sum) / count;
  double m2 = 0;
  for (int64_t part = ptx::thread_index(); part < parts; part += kMergeThreads) {
    if (rows(part) == 0) continue;
    const Moments of_part = at(part);
    const double d = of_part.mean - mean;
    m2 += of_part.m2 + rows(part) * d * d;
  }
  const double variance = block_sum(m2) / count;
  if (ptx::thread_index() == 0) {
    ptx::store_global(norm.mean + i, static_cast<float>(mean));
    ptx::store_global(norm.rstd + i, static_cast<float>(1 / sqrt(variance + eps)));
  }
}

// A channel's normalisation in one image: u = (x - mean) * rstd * gamma + beta.
struct alignas(16) Affine {
  float mean, rstd, gamma, beta;

  DDSM_DEVICE float normalised(float x) const { return (x - mean) * rstd; }
  DDSM_DEVICE float out(float x) const { return fmaf(normalised(x), gamma, beta); }
};

template <class P, class T>
DDSM_DEVICE int64_t group_of(const Norm<P>& norm, const Source<T>& source, int64_t image,
                             int64_t c) {
  return image * norm.groups + (source.first_channel + c) / norm.group_size;
}

template <class P, class T>
DDSM_DEVICE Affine affine_of(const Norm<P>& norm, const Source<T>& source, int64_t image,
                             int64_t c) {
  const int64_t group = group_of(norm, source, image, c), param = source.param_offset + c;
  return {ptx::load_global(norm.mean + group), ptx::load_global(norm.rstd + group),
          to_float(ptx::load_global(norm.weight + param)),
          to_float(ptx::load_global(norm.bias + param))};
}

// dL/du from dL/dy, with y = act(u).
DDSM_DEVICE float grad_act(float grad_y, float u, bool silu) {
  if (!silu) return grad_y;
  const float s = 1.0f / (1.0f + expf(-u));
  return grad_y * s * (1.0f + u * (1.0f - s));
}

// Calls prepare(image, channel, channel in the block) once for every channel of the block, and
// then body(pixel over all images, first channel, channel in the block) for every pack of V.
template <class T, int V, class Prepare, class Body>
DDSM_DEVICE void apply_to_packs(const Source<T>& source, int64_t pixels, const Prepare& prepare,
                                const Body& body) {
  const auto chunks = static_cast<unsigned>((source.c + kApplyChannels - 1) / kApplyChannels);
  const auto pixel_blocks = static_cast<unsigned>((pixels + kApplyPixels - 1) / kApplyPixels);
  const int64_t first_channel = int64_t(ptx::block_index() % chunks) * kApplyChannels;
  const unsigned index = ptx::block_index() / chunks;
  const int64_t image = index / pixel_blocks;
  const int64_t first_pixel = int64_t(index % pixel_blocks) * kApplyPixels;
  const int64_t channels_left = source.c - first_channel, pixels_left = pixels - first_pixel;
  const int channels =
      static_cast<int>(channels_left < kApplyChannels ? channels_left : kApplyChannels);
  const int rows = static_cast<int>(pixels_left < kApplyPixels ? pixels_left : kApplyPixels);
  const int thread = static_cast<int>(ptx::thread_index()), packs = channels / V;
  if (thread < channels) prepare(image, first_channel + thread, thread);
  ptx::sync_threads();
  // Steps of kThreads packs, without a division for each.
  const int row_step = kThreads / packs, pack_step = kThreads % packs;
  int row = thread / packs, pack = thread % packs;
  while (row < rows) {
    body(image * pixels + first_pixel + row, first_channel + pack * V, pack * V);
    row += row_step;
    pack += pack_step;
    if (pack >= packs) {
      pack -= packs;
      ++row;
    }
  }
}
static_assert(kApplyChannels <= kThreads, "each thread prepares one channel");

template <class T, class P, int V>
DDSM_KERNEL(kThreads, 1)
group_norm_apply_kernel(Source<T> source, Norm<P> norm) {
  apply_to_packs<T, V>(
      source, norm.pixels,
      [&](int64_t image, int64_t c, int at) { put(at, affine_of(norm, source, image, c)); },
      [&](int64_t pixel, int64_t c, int at) {
        const auto in = load<T, V>(source.x + pixel * source.x_stride + c);
        Pack<T, V> out;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const float u = get<Affine>(at + i).out(to_float(in.lane[i]));
          from_float(norm.silu ? u / (1.0f + expf(-u)) : u, &out.lane[i]);
        }
        ptx::store_global(reinterpret_cast<Pack<T, V>*>(source.out + pixel * source.c + c), out);
      });
}

// sums [n, moment blocks, source.c]: of du and of du * xhat
template <class T, class P, int V>
DDSM_KERNEL(kThreads, 1)
group_norm_grad_sums_kernel(Source<T> source, Norm<P> norm, Pair* sums) {
  const Part part = Part::of<V>(norm.pixels, source.c);
  const bool active = part.channel < source.c;  // a block without rows leaves zeros
  Pair own[V] = {};
  if (active) {
    Affine affine[V];
#pragma unroll
    for (int v = 0; v < V; ++v) affine[v] = affine_of(norm, source, part.image, part.channel + v);
    for (int64_t r = row_index(); r < part.rows; r += kRows) {
      const int64_t pixel = part.first_pixel + r;
      const auto x = load<T, V>(source.x + pixel * source.x_stride + part.channel);
      const auto grad = load<T, V>(source.grad_y + pixel * source.grad_stride + part.channel);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float value = to_float(x.lane[v]);
        const float du = grad_act(to_float(grad.lane[v]), affine[v].out(value), norm.silu);
        own[v].first += du;
        own[v].second += du * affine[v].normalised(value);
      }
    }
  }
  sum_rows<V>(own);
  if (!active || row_index() != 0) return;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    ptx::store_global(sums + part.place(norm.pixels, source.c) + v, own[v]);
  }
}

// means [n, groups]: of du * gamma and of du * gamma * xhat
template <class P>
DDSM_KERNEL(kMergeThreads, 1)
group_norm_grad_merge_kernel(Joined<Pair> sums, Norm<P> norm, int64_t param_offset2, Pair* means) {
  const int64_t blocks = moment_blocks(norm.pixels), parts = blocks * norm.group_size;
  const double count = static_cast<double>(norm.pixels) * norm.group_size;
  const int64_t i = ptx::block_index();
  const int64_t image = i / norm.groups, first_channel = i % norm.groups * norm.group_size;
  double first = 0, second = 0;
  for (int64_t part = ptx::thread_index(); part < parts; part += kMergeThreads) {
    const int64_t block = part / norm.group_size, channel = first_channel + part % norm.group_size;
    const Pair of_part = sums.at(blocks, image, block, channel);
    const int64_t own = channel - sums.c[0];
    const double gamma =
        to_float(ptx::load_global(norm.weight + (own < 0 ? channel : own + param_offset2)));
    first += gamma * of_part.first;
    second += gamma * of_part.second;
  }
  first = block_sum(first) / count;
  second = block_sum(second) / count;
  if (ptx::thread_index() == 0) {
    ptx::store_global(means + i, Pair{static_cast<float>(first), static_cast<float>(second)});
  }
}

template <class P>
DDSM_DEVICE void add_to(P* target, float value) {
  P sum;
  from_float(to_float(ptx::load_global(target)) + value, &sum);
  ptx::store_global(target, sum);
}

template <class P>
DDSM_KERNEL(kThreads, 1)
group_norm_grad_params_kernel(const Pair* sums, int64_t n, int64_t pixels, int64_t c,
                              P* grad_weight, P* grad_bias) {
  const int64_t channel = ptx::block_index() * int64_t(kLanes) + lane_index();
  const int64_t rows = n * moment_blocks(pixels);
  Pair own[1] = {};
  if (channel < c) {
    for (int64_t i = row_index(); i < rows; i += kRows) {
      const Pair of_block = ptx::load_global(sums + i * c + channel);
      own[0].first += of_block.first;
      own[0].second += of_block.second;
    }
  }
  sum_rows<1>(own);
  if (channel >= c || row_index() != 0) return;
  if (grad_bias) add_to(grad_bias + channel, own[0].first);
  if (grad_weight) add_to(grad_weight + channel, own[0].second);
}

template <class T, class P, int V>
DDSM_KERNEL(kThreads, 1)
group_norm_grad_apply_kernel(Source<T> source, Norm<P> norm, const Pair* means) {
  constexpr int kMeans = kApplyChannels * sizeof(Affine) / sizeof(Pair);  // behind the coefficients
  apply_to_packs<T, V>(
      source, norm.pixels,
      [&](int64_t image, int64_t c, int at) {
        put(at, affine_of(norm, source, image, c));
        put(kMeans + at, ptx::load_global(means + group_of(norm, source, image, c)));
      },
      [&](int64_t pixel, int64_t c, int at) {
        const auto in = load<T, V>(source.x + pixel * source.x_stride + c);
        const auto grad = load<T, V>(source.grad_y + pixel * source.grad_stride + c);
        Pack<T, V> out;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const auto affine = get<Affine>(at + i);
          const auto mean = get<Pair>(kMeans + at + i);
          const float x = to_float(in.lane[i]);
          const float du = grad_act(to_float(grad.lane[i]), affine.out(x), norm.silu);
          const float centred =
              fmaf(du, affine.gamma, -mean.first) - affine.normalised(x) * mean.second;
          from_float(affine.rstd * centred, &out.lane[i]);
        }
        ptx::store_global(reinterpret_cast<Pack<T, V>*>(source.out + pixel * source.c + c), out);
      });
}

int64_t channels_of(const GroupNormArgs& args) {
  int64_t channels = 0;
  for (int64_t s = 0; s < args.source_count; ++s) channels += args.sources[s].c;
  return channels;
}

// Floats pairs (moments or sums) of all sources; the means of a backward pass lie behind them.
int64_t pairs_of(const GroupNormArgs& args) {
  return args.n * moment_blocks(args.pixels) * channels_of(args);
}

template <class T>
Source<T> source_of(const GroupNormArgs& args, int64_t index, bool backward) {
  const GroupNormSource& s = args.sources[index];
  return {static_cast<const T*>(s.x),
          static_cast<const T*>(s.grad_y),
          static_cast<T*>(backward ? s.grad_x : s.y),
          s.c,
          s.x_pixel_stride,
          s.grad_y_pixel_stride,
          index ? args.sources[0].c : 0,
          s.param_offset};
}

template <class P>
Norm<P> norm_of(const GroupNormArgs& args) {
  return {args.n,
          args.pixels,
          args.groups,
          channels_of(args) / args.groups,
          static_cast<const P*>(args.weight),
          static_cast<const P*>(args.bias),
          static_cast<float*>(args.mean),
          static_cast<float*>(args.rstd),
          args.silu};
}

// True if every pixel of the source can be read and written as packs of `bytes`.
template <class T>
bool takes_packs(const Source<T>& source, int64_t bytes) {
  const int64_t pack = bytes / static_cast<int64_t>(sizeof(T));
  auto aligned = [&](const void* data) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; };
  return source.c % pack == 0 && source.x_stride % pack == 0 && source.grad_stride % pack == 0 &&
         aligned(source.x) && aligned(source.out) && aligned(source.grad_y);
}

// This source's part of an array of pairs of both.
template <class V, class T>
V* part_of(const GroupNormArgs& args, const Source<T>& source) {
  const int64_t before = args.n * moment_blocks(args.pixels) * source.first_channel;
  return static_cast<V*>(args.scratch) + before;
}

// Of the kernels that sum over blocks of pixels, V channels a thread.
template <int V>
LaunchShape sums_shape(const GroupNormArgs& args, int64_t c) {
  const int64_t blocks = args.n * moment_blocks(args.pixels) * blocks_of(c, kLanes * V);
  return {blocks, 1, kThreads, V * kThreads * static_cast<int64_t>(sizeof(Pair))};
}

LaunchShape merge_shape(const GroupNormArgs& args) {
  return {args.n * args.groups, 1, kMergeThreads,
          kMergeThreads * static_cast<int64_t>(sizeof(double))};
}

LaunchShape apply_shape(const GroupNormArgs& args, int64_t c) {
  const int64_t chunks = blocks_of(c, kApplyChannels);
  return {args.n * blocks_of(args.pixels, kApplyPixels) * chunks, 1, kThreads,
          kApplyChannels * static_cast<int64_t>(sizeof(Affine) + sizeof(Pair))};
}

// Null, or why the blocks of a launch cannot be counted.
const char* refusal(const GroupNormArgs& args) {
  constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;
  const int64_t parts = args.n * moment_blocks(args.pixels) * blocks_of(channels_of(args), kLanes);
  const bool fits = parts + args.source_count <= kMostBlocks && args.n * args.groups <= kMostBlocks;
  return fits ? nullptr : "more than 2^31 blocks of 64 pixels and 32 channels";
}

template <class T, class P>
const char* forward(const GroupNormArgs& args, const void* const moments[2], void* stream) {
  Joined<Moments> joined{};
  for (int64_t s = 0; s < args.source_count; ++s) {
    const Source<T> source = source_of<T>(args, s, false);
    joined.c[s] = source.c;
    joined.of[s] = static_cast<const Moments*>(moments[s]);
    if (joined.of[s]) continue;
    joined.of[s] = part_of<Moments>(args, source);
    constexpr int V = 4 / sizeof(T);
    const bool packs = takes_packs(source, 4);
    const char* error = launch("group_norm_moments",
        packs ? group_norm_moments_kernel<T, V> : group_norm_moments_kernel<T, 1>,
        packs ? sums_shape<V>(args, source.c) : sums_shape<1>(args, source.c), stream, source,
        args.pixels, part_of<Moments>(args, source));
    if (error) return error;
  }
  const char* error =
      launch("group_norm_merge", group_norm_merge_kernel, merge_shape(args), stream, joined, norm_of<float>(args),
             args.eps);
  for (int64_t s = 0; s < args.source_count && !error; ++s) {
    const Source<T> source = source_of<T>(args, s, false);
    auto* kernel = takes_packs(source, 16) ? group_norm_apply_kernel<T, P, 16 / sizeof(T)>
                                           : group_norm_apply_kernel<T, P, 1>;
    error = launch("group_norm_apply", kernel, apply_shape(args, source.c), stream, source, norm_of<P>(args));
  }
  return error;
}

template <class T, class P>
const char* backward(const GroupNormArgs& args, void* stream) {
  const Norm<P> norm = norm_of<P>(args);
  Pair* means = static_cast<Pair*>(args.scratch) + pairs_of(args);
  Joined<Pair> joined{};
  const char* error = nullptr;
  for (int64_t s = 0; s < args.source_count && !error; ++s) {
    const Source<T> source = source_of<T>(args, s, true);
    Pair* sums = part_of<Pair>(args, source);
    joined.c[s] = source.c;
    joined.of[s] = sums;
    constexpr int V = 4 / sizeof(T);
    const bool packs = takes_packs(source, 4);
    error = launch("group_norm_grad_sums",
        packs ? group_norm_grad_sums_kernel<T, P, V> : group_norm_grad_sums_kernel<T, P, 1>,
        packs ? sums_shape<V>(args, source.c) : sums_shape<1>(args, source.c), stream, source,
        norm, sums);
    if (error || !(args.grad_weight || args.grad_bias)) continue;
    auto* grad_weight = static_cast<P*>(args.grad_weight);
    auto* grad_bias = static_cast<P*>(args.grad_bias);
    LaunchShape shape = sums_shape<1>(args, source.c);
    shape.blocks = blocks_of(source.c, kLanes);
    error = launch("group_norm_grad_params", group_norm_grad_params_kernel<P>, shape, stream, sums, args.n, args.pixels,
                   source.c, grad_weight ? grad_weight + source.param_offset : nullptr,
                   grad_bias ? grad_bias + source.param_offset : nullptr);
  }
  if (error) return error;
  error = launch("group_norm_grad_merge", group_norm_grad_merge_kernel<P>, merge_shape(args), stream, joined, norm,
                 args.sources[1].param_offset, means);
  for (int64_t s = 0; s < args.source_count && !error; ++s) {
    const Source<T> source = source_of<T>(args, s, true);
    auto* kernel = takes_packs(source, 16) ? group_norm_grad_apply_kernel<T, P, 16 / sizeof(T)>
                                           : group_norm_grad_apply_kernel<T, P, 1>;
    error = launch("group_norm_grad_apply", kernel, apply_shape(args, source.c), stream, source, norm, means);
  }
  return error;
}

// Calls run(element, parameter) with a number of either type.
template <class Run>
const char* with_types(const GroupNormArgs& args, const Run& run) {
  if (args.n == 0 || args.pixels == 0) return nullptr;
  if (const char* reason = refusal(args)) return reason;
  const bool wide = args.param_dtype == DType::kFloat32;
  switch (args.dtype) {
    case DType::kFloat32:
      return run(float{}, float{});
    case DType::kBFloat16:
      return wide ? run(BFloat16{}, float{}) : run(BFloat16{}, BFloat16{});
    case DType::kFloat16:
      return wide ? run(Float16{}, float{}) : run(Float16{}, Float16{});
    case DType::kFloat64:
      break;
  }
  return "no CUDA kernel for float64";
}

}  // namespace

int64_t group_norm_cuda_moments_bytes(int64_t n, int64_t pixels, int64_t channels) {
  return n * moment_blocks(pixels) * channels * static_cast<int64_t>(sizeof(Moments));
}

int64_t group_norm_cuda_scratch_bytes(const GroupNormArgs& args) {
  return (pairs_of(args) + args.n * args.groups) * static_cast<int64_t>(sizeof(Pair));
}

const char* group_norm_forward_cuda(const GroupNormArgs& args, const void* const moments[2],
                                    void* stream) {
  return with_types(args, [&](auto element, auto parameter) {
    return forward<decltype(element), decltype(parameter)>(args, moments, stream);
  });
}

const char* group_norm_backward_cuda(const GroupNormArgs& args, void* stream) {
  return with_types(args, [&](auto element, auto parameter) {
    return backward<decltype(element), decltype(parameter)>(args, stream);
  });
}

}  // namespace ddsm
