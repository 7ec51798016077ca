// Group norm with fused SiLU on CUDA, forward and backward, for one or two NHWC sources. No
// atomics: every sum has one order.
//
//   moments     (64 pixels, channels)      mean and squared deviations, unless a convolution left
//                                          them
//   apply       (pixels, channels)         the statistics of the block's groups from the moments;
//                                          y = act((x - mean) * rstd * gamma + beta)
//   apply_down  (2x2 pixels, channels)     the same; the means of y
//
//   grad_sums   (64 pixels, channels)      sums of du and du * xhat, with u the input of act
//   grad_params (8 channels)               dL/dgamma and dL/dbeta
//   grad_modulation (image, 8 channels)    dL/dscale and dL/dshift
//   grad_apply  (pixels, channels)         their means over the block's groups; dL/dx
#include "ddsm/group_norm_cuda.h"

#include <type_traits>

#include "group_norm_grad_kernels.cuh"
#include "launch.cuh"

namespace ddsm {
namespace {

int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

int64_t channels_of(const GroupNormArgs& args) {
  int64_t channels = 0;
  for (int64_t s = 0; s < args.source_count; ++s) channels += args.sources[s].c;
  return channels;
}

// True if every pixel of the sources can be read and written as packs of 16 bytes.
bool takes_packs(const GroupNormArgs& args, bool backward) {
  const int64_t pack = args.dtype == DType::kFloat32 ? 4 : 8;
  auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  bool takes = true;
  for (int64_t i = 0; i < args.source_count; ++i) {
    const GroupNormSource& s = args.sources[i];
    takes = takes && s.c % pack == 0 && s.x_pixel_stride % pack == 0 && aligned(s.x);
    takes = takes && (backward ? s.grad_y_pixel_stride % pack == 0 && aligned(s.grad_y) &&
                                     aligned(s.grad_x)
                               : aligned(s.y));
  }
  return takes;
}

template <class T>
NormSource<T> norm_source(const GroupNormArgs& args, int64_t index, int64_t pack, bool backward) {
  const GroupNormSource& s = args.sources[index];
  // Chunks of nearly one size: a small last one would leave threads without work.
  const int64_t packs = s.c / pack, chunks = blocks_of(packs, kNormChannels / pack);
  const int64_t chunk = blocks_of(packs, chunks) * pack;
  return {static_cast<const T*>(s.x),
          static_cast<const T*>(s.grad_y),
          static_cast<T*>(backward ? s.grad_x : s.y),
          s.x_pixel_stride,
          s.grad_y_pixel_stride,
          static_cast<int32_t>(s.c),
          static_cast<int32_t>(index ? args.sources[0].c : 0),
          static_cast<int32_t>(s.param_offset),
          static_cast<int32_t>(blocks_of(s.c, chunk)),
          static_cast<int32_t>(chunk)};
}

template <class V>
NormParts<V> norm_parts(const GroupNormArgs& args, V* data, int64_t classes) {
  const int64_t pixels = args.pixels / classes, blocks = moment_blocks(pixels);
  return {data, pixels, static_cast<int32_t>(classes * blocks), Divider(blocks)};
}

// All but the parts and the rows of a block.
template <class T, class V>
NormParams<T, V> norm_params(const GroupNormArgs& args, int64_t pack, bool backward) {
  NormParams<T, V> p{};
  for (int64_t s = 0; s < args.source_count; ++s) {
    p.sources[s] = norm_source<T>(args, s, pack, backward);
  }
  if (args.source_count == 1) p.sources[1].first_channel = p.sources[0].c;
  p.weight = args.weight;
  p.bias = args.bias;
  p.mean = static_cast<float*>(args.mean);
  p.rstd = static_cast<float*>(args.rstd);
  p.grad_weight = args.grad_weight;
  p.grad_bias = args.grad_bias;
  p.scale = static_cast<const T*>(args.scale);
  p.shift = static_cast<const T*>(args.shift);
  p.modulation_stride = args.modulation_stride;
  p.grad_scale = static_cast<T*>(args.grad_scale);
  p.grad_shift = static_cast<T*>(args.grad_shift);
  p.eps = args.eps;
  p.n = static_cast<int32_t>(args.n);
  p.pixels = static_cast<int32_t>(args.pixels);
  p.groups = static_cast<int32_t>(args.groups);
  p.group_size = static_cast<int32_t>(channels_of(args) / args.groups);
  p.inverse_count = 1 / (static_cast<double>(args.pixels) * p.group_size);
  p.columns = p.group_size < kNormChannels ? p.group_size : kNormChannels;
  p.lanes = 1;
  while (p.lanes < 8 && 2 * p.lanes <= p.columns) p.lanes *= 2;
  p.silu = args.silu;
  p.wide_params = args.param_dtype == DType::kFloat32;
  return p;
}

template <class T, class V>
int64_t chunks_of(const NormParams<T, V>& p) {
  return p.sources[0].chunks + p.sources[1].chunks;
}

// What a kernel that sums over blocks of kMomentPixels pixels covers, and its launch.
template <class T, class V>
LaunchShape sum_blocks(NormParams<T, V>& p, int64_t pack, bool overlaps) {
  p.row_blocks = static_cast<int32_t>(moment_blocks(p.pixels));
  const int64_t coefficients = 3 * kNormChannels * static_cast<int64_t>(sizeof(float));
  const int64_t pairs = pack * kPairPitch * static_cast<int64_t>(sizeof(Pair));
  return {int64_t(p.n) * p.row_blocks * chunks_of(p), 1, kSumThreads, pairs + coefficients,
          overlaps};
}

constexpr int64_t kFewestRows = 8;

// How many of an image's `pixels` a block of the apply kernels covers, and its launch; a thread has
// `ahead` of them under way. Many, as each reads the
// moments of its image again: of half an image of 16-bit numbers they are 6 % of what a block moves
// (8 bytes a channel and 64 pixels beside 2 x 2 a pixel). Fewer where blocks would be too few: two
// for most multiprocessors, or, below the rows that a block's threads take at a time, one.
template <class T, class V>
LaunchShape apply_blocks(NormParams<T, V>& p, int64_t pack, int64_t pixels, int64_t ahead,
                         bool overlaps) {
  const int64_t images_chunks = p.n * chunks_of(p), available = multiprocessors();
  const auto blocks = [&](int64_t rows) { return images_chunks * blocks_of(pixels, rows); };
  const int64_t packs = p.sources[0].chunk_channels / pack;
  const int64_t at_a_time = ahead * (kApplyThreads / packs);
  int64_t rows = blocks_of(pixels, sizeof(T));
  if (rows < at_a_time) rows = at_a_time < pixels ? at_a_time : pixels;
  while (4 * blocks(rows) < 7 * available && rows > at_a_time) rows = blocks_of(rows, 2);
  while (4 * blocks(rows) < 3 * available && rows > kFewestRows) rows = blocks_of(rows, 2);
  p.rows = static_cast<int32_t>(rows);
  p.row_blocks = static_cast<int32_t>(blocks_of(pixels, rows));
  constexpr int64_t kShared = kCoefficients + 4 * kNormChannels * sizeof(float);
  return {blocks(rows), 1, kApplyThreads, kShared, overlaps};
}

// Null, or why the blocks of a launch cannot be counted.
const char* refusal(const GroupNormArgs& args) {
  constexpr int64_t kMost = (int64_t(1) << 31) - 1;
  // Chunks of equal size have more than half of kNormChannels channels.
  const int64_t chunks = channels_of(args) / (kNormChannels / 2) + args.source_count;
  const bool fits = args.pixels <= kMost - kMomentPixels && args.n * args.groups <= kMost &&
                    args.n * blocks_of(args.pixels, kFewestRows) * chunks <= kMost &&
                    args.n * (channels_of(args) / kParamLanes + 2) <= kMost;
  return fits ? nullptr : "more than 2^31 blocks of 8 pixels and 32 channels";
}

// The sources' parts in scratch, for those that have none.
template <class V>
V* part_of_scratch(const GroupNormArgs& args, int64_t source) {
  const int64_t before = source ? args.n * moment_blocks(args.pixels) * args.sources[0].c : 0;
  return static_cast<V*>(args.scratch) + before;
}

template <class T, int V>
const char* forward(const GroupNormArgs& args, const GroupNormMoments given[2], int64_t down_width,
                    bool overlaps, void* stream) {
  auto found = norm_params<T, Moments>(args, V, false);
  auto p = norm_params<T, const Moments>(args, V, false);
  bool all_given = true;
  for (int64_t s = 0; s < args.source_count; ++s) {
    const auto* data = static_cast<const Moments*>(given[s].data);
    if (data) {
      p.parts[s] = norm_parts(args, data, given[s].classes);
      found.sources[s].chunks = 0;
      continue;
    }
    all_given = false;
    found.parts[s] = norm_parts(args, part_of_scratch<Moments>(args, s), 1);
    p.parts[s] = norm_parts<const Moments>(args, found.parts[s].data, 1);
  }
  if (!all_given) {
    const LaunchShape shape = sum_blocks(found, V, overlaps);
    const char* error =
        launch("group_norm_moments", group_norm_moments_kernel<T, V>, shape, stream, found);
    if (error) return error;
  }
  if (down_width == 0) {
    const LaunchShape shape = apply_blocks(p, V, args.pixels, 4, overlaps);
    return launch("group_norm_apply", group_norm_apply_kernel<T, V>, shape, stream, p);
  }
  p.half_width = Divider(down_width / 2);
  const LaunchShape shape = apply_blocks(p, V, args.pixels / 4, 2, overlaps);
  return launch("group_norm_apply_down", group_norm_apply_down_kernel<T, V>, shape, stream, p);
}

template <class T, int V>
const char* backward(const GroupNormArgs& args, void* stream) {
  auto p = norm_params<T, Pair>(args, V, true);
  for (int64_t s = 0; s < args.source_count; ++s) {
    p.parts[s] = norm_parts(args, part_of_scratch<Pair>(args, s), 1);
  }
  LaunchShape shape = sum_blocks(p, V, false);
  const char* error =
      launch("group_norm_grad_sums", group_norm_grad_sums_kernel<T, V>, shape, stream, p);
  shape = {blocks_of(p.sources[0].c, kParamLanes) + blocks_of(p.sources[1].c, kParamLanes), 1,
           kApplyThreads, kApplyThreads * static_cast<int64_t>(sizeof(Pair))};
  if (!error && (args.grad_weight || args.grad_bias)) {
    error = launch("group_norm_grad_params", group_norm_grad_params_kernel<T>, shape, stream, p);
  }
  shape.blocks *= args.n;
  if (!error && (args.grad_scale || args.grad_shift)) {
    error = launch("group_norm_grad_modulation", group_norm_grad_modulation_kernel<T>, shape,
                   stream, p);
  }
  if (error) return error;
  shape = apply_blocks(p, V, args.pixels, 4, false);
  return launch("group_norm_grad_apply", group_norm_grad_apply_kernel<T, V>, shape, stream, p);
}

// Calls run(element, pack): a number of the sources' type and how many channels a thread takes.
template <class Run>
const char* with_types(const GroupNormArgs& args, bool backward, const Run& run) {
  if (args.n == 0 || args.pixels == 0) return nullptr;
  if (const char* reason = refusal(args)) return reason;
  return with_number(args.dtype, [&](auto element) {
    constexpr int kPack = 16 / sizeof element;
    return takes_packs(args, backward) ? run(element, std::integral_constant<int, kPack>{})
                                       : run(element, std::integral_constant<int, 1>{});
  });
}

}  // namespace

int64_t group_norm_cuda_moments_bytes(int64_t n, int64_t pixels, int64_t channels) {
  return n * moment_blocks(pixels) * channels * static_cast<int64_t>(sizeof(Moments));
}

int64_t group_norm_cuda_scratch_bytes(const GroupNormArgs& args) {
  return group_norm_cuda_moments_bytes(args.n, args.pixels, channels_of(args));
}

const char* group_norm_forward_cuda(const GroupNormArgs& args, const GroupNormMoments moments[2],
                                    int64_t down_width, bool overlaps, void* stream) {
  if (down_width % 2 != 0 || (down_width > 0 && args.pixels % (2 * down_width) != 0)) {
    return "an odd height or width has no means of 2x2 pixels";
  }
  return with_types(args, false, [&](auto element, auto pack) {
    return forward<decltype(element), pack>(args, moments, down_width, overlaps, stream);
  });
}

const char* group_norm_backward_cuda(const GroupNormArgs& args, void* stream) {
  if (args.pixels == 0) {
    const auto bytes = static_cast<size_t>(args.n * channels_of(args) * element_bytes(args.dtype));
    const char* error = args.grad_scale ? clear(args.grad_scale, bytes, stream) : nullptr;
    if (!error && args.grad_shift) error = clear(args.grad_shift, bytes, stream);
    return error;
  }
  return with_types(args, true, [&](auto element, auto pack) {
    return backward<decltype(element), pack>(args, stream);
  });
}

}  // namespace ddsm
