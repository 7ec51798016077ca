// Group norm with fused SiLU on CUDA, forward and backward, for one or two NHWC sources. No
// atomics: every sum has one order.
//
//   moments     (pixel block, 32 channels)  mean and squared deviations, unless a convolution left
//                                           them
//   merge       (image, group)              mean and rstd by Chan's formula in double
//   apply       (image, pixel block)        y = act((x - mean) * rstd * gamma + beta)
//
//   grad_sums   (pixel block, 32 channels)  sums of du and du * xhat, with u the input of act
//   grad_merge  (image, group)              their means over the group, weighted by gamma
//   grad_params (32 channels)               dL/dgamma and dL/dbeta
//   grad_apply  (image, pixel block)        dL/dx = rstd * (du * gamma - means of the group)
#include "ddsm/group_norm_cuda.h"

#include <cmath>

#include "index_maps.h"
#include "launch.cuh"
#include "moments.h"

namespace ddsm {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 32;                 // adjacent channels that a warp reads of a pixel
constexpr int kRows = kThreads / kLanes;   // pixels that a block reads at a time
constexpr int kMergeThreads = 128;
constexpr int64_t kApplyPixels = 32;  // pixels of an apply block

// Two sums of a channel, or two means of a group.
struct Pair {
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
  int64_t n, pixels, channels, groups, group_size;
  const P *weight, *bias;
  float *mean, *rstd;  // [n, groups]
  bool silu;
};

int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
int64_t grid_of(int64_t count) { return count < kMaxGrid ? count : kMaxGrid; }

DDSM_DEVICE int64_t lane_index() { return ptx::thread_index() % kLanes; }
DDSM_DEVICE int64_t row_index() { return ptx::thread_index() / kLanes; }

// Shared memory as an array of T.
template <class T>
DDSM_DEVICE T get(int64_t index) {
  return ptx::load_shared<T>(static_cast<uint32_t>(index * sizeof(T)));
}
template <class T>
DDSM_DEVICE void put(int64_t index, T value) {
  ptx::store_shared(static_cast<uint32_t>(index * sizeof(T)), value);
}

// The sums of both over the block's rows of each lane, for row 0.
DDSM_DEVICE Pair sum_rows(Pair own) {
  put<Pair>(ptx::thread_index(), own);
  ptx::sync_threads();
  if (row_index() == 0) {
    for (int i = 1; i < kRows; ++i) {
      const Pair other = get<Pair>(i * kLanes + lane_index());
      own.first += other.first;
      own.second += other.second;
    }
  }
  ptx::sync_threads();  // the next round writes again
  return own;
}

// Calls body(image, block of the image, channel) for every (pixel block, channel) of the thread.
template <class T, class Body>
DDSM_DEVICE void for_each_block(const Source<T>& source, int64_t n, int64_t pixels,
                                const Body& body) {
  const int64_t channel_blocks = (source.c + kLanes - 1) / kLanes;
  const int64_t image_blocks = moment_blocks(pixels);
  const int64_t count = n * image_blocks * channel_blocks;
  for (int64_t i = ptx::block_index(); i < count; i += ptx::grid_size()) {
    const int64_t block = i / channel_blocks;
    body(block / image_blocks, block % image_blocks, i % channel_blocks * kLanes + lane_index());
  }
}

// moments [n, moment blocks, source.c]
template <class T>
DDSM_KERNEL(kThreads, 1)
group_norm_moments_kernel(Source<T> source, int64_t n, int64_t pixels, Moments* moments) {
  for_each_block(source, n, pixels, [&](int64_t image, int64_t block, int64_t c) {
    const int64_t rows = moment_block_pixels(pixels, image, block);
    const int64_t first = image * pixels + moment_block_begin(pixels, image, block);
    const bool active = c < source.c && rows > 0;
    float shift = 0;
    Pair sums{0, 0};
    if (active) {
      // Deviations from the block's first pixel: data, so the squares cannot cancel badly.
      const T* x = source.x + first * source.x_stride + c;
      shift = to_float(ptx::load_global(x));
      for (int64_t r = row_index(); r < rows; r += kRows) {
        const float d = to_float(ptx::load_global(x + r * source.x_stride)) - shift;
        sums.first += d;
        sums.second += d * d;
      }
    }
    sums = sum_rows(sums);
    if (active && row_index() == 0) {
      const float delta = sums.first / static_cast<float>(rows);
      const float m2 = sums.second - sums.first * delta;
      ptx::store_global(moments + (image * moment_blocks(pixels) + block) * source.c + c,
                        Moments{shift + delta, m2 > 0 ? m2 : 0.0f});
    }
  });
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
    const int second = channel >= c[0];
    const int64_t own = channel - (second ? c[0] : 0);
    return ptx::load_global(of[second] + (image * blocks + block) * c[second] + own);
  }
};

DDSM_KERNEL(kMergeThreads, 1)
group_norm_merge_kernel(Joined<Moments> moments, Norm<float> norm, double eps) {
  const int64_t blocks = moment_blocks(norm.pixels), parts = blocks * norm.group_size;
  const double count = static_cast<double>(norm.pixels) * norm.group_size;
  for (int64_t i = ptx::block_index(); i < norm.n * norm.groups; i += ptx::grid_size()) {
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
}

// A channel's normalisation in one image.
struct Affine {
  float mean, rstd, gamma, beta;
  int64_t group;  // over all images

  DDSM_DEVICE float normalised(float x) const { return (x - mean) * rstd; }
  DDSM_DEVICE float out(float x) const { return fmaf(normalised(x), gamma, beta); }
};

template <class P, class T>
DDSM_DEVICE Affine affine_of(const Norm<P>& norm, const Source<T>& source, int64_t image,
                             int64_t c) {
  const int64_t group = image * norm.groups + (source.first_channel + c) / norm.group_size;
  const int64_t param = source.param_offset + c;
  return {ptx::load_global(norm.mean + group), ptx::load_global(norm.rstd + group),
          to_float(ptx::load_global(norm.weight + param)),
          to_float(ptx::load_global(norm.bias + param)), group};
}

// dL/du from dL/dy, with y = act(u).
DDSM_DEVICE float grad_act(float grad_y, float u, bool silu) {
  if (!silu) return grad_y;
  const float s = 1.0f / (1.0f + expf(-u));
  return grad_y * s * (1.0f + u * (1.0f - s));
}

// Calls body(pixel over all images, image, first channel) for every pack of V channels.
template <class T, int V, class Body>
DDSM_DEVICE void for_each_pack(const Source<T>& source, int64_t n, int64_t pixels,
                               const Body& body) {
  const int64_t pixel_blocks = (pixels + kApplyPixels - 1) / kApplyPixels, packs = source.c / V;
  for (int64_t i = ptx::block_index(); i < n * pixel_blocks; i += ptx::grid_size()) {
    const int64_t image = i / pixel_blocks, first = i % pixel_blocks * kApplyPixels;
    const int64_t left = pixels - first, rows = left < kApplyPixels ? left : kApplyPixels;
    for (int64_t item = ptx::thread_index(); item < rows * packs; item += kThreads) {
      body(image * pixels + first + item / packs, image, item % packs * V);
    }
  }
}

template <class T, int V>
DDSM_DEVICE Pack<T, V> load(const T* data) {
  return ptx::load_global(reinterpret_cast<const Pack<T, V>*>(data));
}

template <class T, class P, int V>
DDSM_KERNEL(kThreads, 1)
group_norm_apply_kernel(Source<T> source, Norm<P> norm) {
  for_each_pack<T, V>(source, norm.n, norm.pixels, [&](int64_t pixel, int64_t image, int64_t c) {
    const auto in = load<T, V>(source.x + pixel * source.x_stride + c);
    Pack<T, V> out;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float u = affine_of(norm, source, image, c + i).out(to_float(in.lane[i]));
      from_float(norm.silu ? u / (1.0f + expf(-u)) : u, &out.lane[i]);
    }
    ptx::store_global(reinterpret_cast<Pack<T, V>*>(source.out + pixel * source.c + c), out);
  });
}

// sums [n, moment blocks, source.c]: of du and of du * xhat
template <class T, class P>
DDSM_KERNEL(kThreads, 1)
group_norm_grad_sums_kernel(Source<T> source, Norm<P> norm, Pair* sums) {
  for_each_block(source, norm.n, norm.pixels, [&](int64_t image, int64_t block, int64_t c) {
    const int64_t rows = moment_block_pixels(norm.pixels, image, block);
    const int64_t first = image * norm.pixels + moment_block_begin(norm.pixels, image, block);
    const bool active = c < source.c && rows > 0;
    Pair own{0, 0};
    if (active) {
      const Affine affine = affine_of(norm, source, image, c);
      for (int64_t p = first + row_index(); p < first + rows; p += kRows) {
        const float x = to_float(ptx::load_global(source.x + p * source.x_stride + c));
        const float grad = to_float(ptx::load_global(source.grad_y + p * source.grad_stride + c));
        const float du = grad_act(grad, affine.out(x), norm.silu);
        own.first += du;
        own.second += du * affine.normalised(x);
      }
    }
    own = sum_rows(own);
    if (active && row_index() == 0) {
      ptx::store_global(sums + (image * moment_blocks(norm.pixels) + block) * source.c + c, own);
    }
  });
}

// means [n, groups]: of du * gamma and of du * gamma * xhat
template <class P>
DDSM_KERNEL(kMergeThreads, 1)
group_norm_grad_merge_kernel(Joined<Pair> sums, Norm<P> norm, int64_t param_offset2, Pair* means) {
  const int64_t blocks = moment_blocks(norm.pixels), parts = blocks * norm.group_size;
  const double count = static_cast<double>(norm.pixels) * norm.group_size;
  for (int64_t i = ptx::block_index(); i < norm.n * norm.groups; i += ptx::grid_size()) {
    const int64_t image = i / norm.groups, first_channel = i % norm.groups * norm.group_size;
    double first = 0, second = 0;
    for (int64_t part = ptx::thread_index(); part < parts; part += kMergeThreads) {
      const int64_t block = part / norm.group_size, channel = first_channel + part % norm.group_size;
      if (moment_block_pixels(norm.pixels, image, block) == 0) continue;
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
  const int64_t blocks = moment_blocks(pixels);
  Pair own{0, 0};
  if (channel < c) {
    for (int64_t i = row_index(); i < n * blocks; i += kRows) {
      if (moment_block_pixels(pixels, i / blocks, i % blocks) == 0) continue;
      const Pair of_block = ptx::load_global(sums + i * c + channel);
      own.first += of_block.first;
      own.second += of_block.second;
    }
  }
  own = sum_rows(own);
  if (channel >= c || row_index() != 0) return;
  if (grad_bias) add_to(grad_bias + channel, own.first);
  if (grad_weight) add_to(grad_weight + channel, own.second);
}

template <class T, class P, int V>
DDSM_KERNEL(kThreads, 1)
group_norm_grad_apply_kernel(Source<T> source, Norm<P> norm, const Pair* means) {
  for_each_pack<T, V>(source, norm.n, norm.pixels, [&](int64_t pixel, int64_t image, int64_t c) {
    const auto in = load<T, V>(source.x + pixel * source.x_stride + c);
    const auto grad = load<T, V>(source.grad_y + pixel * source.grad_stride + c);
    Pack<T, V> out;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const Affine affine = affine_of(norm, source, image, c + i);
      const Pair mean = ptx::load_global(means + affine.group);
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
  const int64_t channels = channels_of(args);
  return {args.n,
          args.pixels,
          channels,
          args.groups,
          channels / args.groups,
          static_cast<const P*>(args.weight),
          static_cast<const P*>(args.bias),
          static_cast<float*>(args.mean),
          static_cast<float*>(args.rstd),
          args.silu};
}

// True if every pixel of the source can be read and written as packs of 16 bytes.
template <class T>
bool takes_packs(const Source<T>& source, bool backward) {
  constexpr int64_t kPack = 16 / sizeof(T);
  auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return source.c % kPack == 0 && source.x_stride % kPack == 0 && aligned(source.x) &&
         aligned(source.out) &&
         (!backward || (source.grad_stride % kPack == 0 && aligned(source.grad_y)));
}

// This source's part of an array of pairs of both.
template <class V, class T>
V* part_of(const GroupNormArgs& args, const Source<T>& source) {
  const int64_t before = args.n * moment_blocks(args.pixels) * source.first_channel;
  return static_cast<V*>(args.scratch) + before;
}

template <class T>
LaunchShape block_shape(const GroupNormArgs& args, const Source<T>& source) {
  const int64_t blocks = args.n * moment_blocks(args.pixels) * blocks_of(source.c, kLanes);
  return {grid_of(blocks), 1, kThreads, kThreads * static_cast<int64_t>(sizeof(Pair))};
}

LaunchShape merge_shape(const GroupNormArgs& args) {
  return {grid_of(args.n * args.groups), 1, kMergeThreads,
          kMergeThreads * static_cast<int64_t>(sizeof(double))};
}

LaunchShape apply_shape(const GroupNormArgs& args) {
  return {grid_of(args.n * blocks_of(args.pixels, kApplyPixels)), 1, kThreads, 0};
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
    const char* error = launch(group_norm_moments_kernel<T>, block_shape(args, source), stream,
                               source, args.n, args.pixels, part_of<Moments>(args, source));
    if (error) return error;
  }
  const char* error =
      launch(group_norm_merge_kernel, merge_shape(args), stream, joined, norm_of<float>(args),
             args.eps);
  for (int64_t s = 0; s < args.source_count && !error; ++s) {
    const Source<T> source = source_of<T>(args, s, false);
    auto* kernel = takes_packs(source, false) ? group_norm_apply_kernel<T, P, 16 / sizeof(T)>
                                              : group_norm_apply_kernel<T, P, 1>;
    error = launch(kernel, apply_shape(args), stream, source, norm_of<P>(args));
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
    error = launch(group_norm_grad_sums_kernel<T, P>, block_shape(args, source), stream, source,
                   norm, sums);
    if (error || !(args.grad_weight || args.grad_bias)) continue;
    auto* grad_weight = static_cast<P*>(args.grad_weight);
    auto* grad_bias = static_cast<P*>(args.grad_bias);
    LaunchShape shape = block_shape(args, source);
    shape.blocks = blocks_of(source.c, kLanes);
    error = launch(group_norm_grad_params_kernel<P>, shape, stream, sums, args.n, args.pixels,
                   source.c, grad_weight ? grad_weight + source.param_offset : nullptr,
                   grad_bias ? grad_bias + source.param_offset : nullptr);
  }
  if (error) return error;
  error = launch(group_norm_grad_merge_kernel<P>, merge_shape(args), stream, joined, norm,
                 args.sources[1].param_offset, means);
  for (int64_t s = 0; s < args.source_count && !error; ++s) {
    const Source<T> source = source_of<T>(args, s, true);
    auto* kernel = takes_packs(source, true) ? group_norm_grad_apply_kernel<T, P, 16 / sizeof(T)>
                                             : group_norm_grad_apply_kernel<T, P, 1>;
    error = launch(kernel, apply_shape(args), stream, source, norm, means);
  }
  return error;
}

// Calls run(element, parameter) with a number of either type.
template <class Run>
const char* with_types(const GroupNormArgs& args, const Run& run) {
  if (args.n == 0 || args.pixels == 0) return nullptr;
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
