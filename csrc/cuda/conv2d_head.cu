// The head kernel of sliced_conv2d on CUDA.
//
// A block's pixels follow each other in memory, over rows and images; those that one row of the
// window meets do too. These strips come as whole chunks of 16 bytes into shared memory, from where
// each pixel's window is gathered: K is (row, column, channel) of the window, without gaps.
#include "conv2d_head.cuh"

#include <cstdio>
#include <cstdlib>

#include "conv2d_epilogue.cuh"
#include "conv2d_loaders.cuh"
#include "launch.cuh"

namespace ddsm {
namespace {

constexpr int64_t kMostDepth = 64;  // numbers of a window

struct HeadParams {
  ConvParams conv;
  int64_t numbers;  // of x, all images
  int32_t height, width, kernel, channels, overlaps;
};

// Where a strip begins: the chunk of x, and the number in that chunk.
struct Strip {
  int64_t chunk;
  int32_t phase;
};

// The size of the window, known at compile time unless kKernel is 0.
template <int kKernel, int kChannels>
struct Window {
  static constexpr bool kKnown = kKernel > 0;
  int32_t kernel, channels;

  DDSM_DEVICE explicit Window(const HeadParams& p)
      : kernel(kKnown ? kKernel : p.kernel), channels(kKnown ? kChannels : p.channels) {}
  DDSM_DEVICE int32_t depth() const { return kernel * kernel * channels; }
};

template <class Tile>
struct HeadLayout {
  using T = typename Tile::Element;
  static constexpr int V = 16 / sizeof(T);

  static DDSM_HOST_DEVICE int steps(int32_t depth) {
    return (depth + Tile::A::kStep - 1) / Tile::A::kStep;
  }
  static DDSM_HOST_DEVICE int strip_chunks(int32_t kernel, int32_t channels) {
    return ((Tile::kM + kernel - 1) * channels + V - 1) / V + 1;
  }
  // Where the strips begin in shared memory.
  static DDSM_HOST_DEVICE uint32_t strips(int32_t depth) {
    return static_cast<uint32_t>(steps(depth) * Tile::kStageBytes);
  }
};

template <class Tile>
DDSM_DEVICE Strip strip_of(const HeadParams& p, int32_t m0, int32_t r, int32_t channels) {
  constexpr int V = HeadLayout<Tile>::V;
  const int32_t padding = p.kernel / 2;
  const int64_t first = (m0 + int64_t(r - padding) * p.width - padding) * channels;
  const int64_t chunk = first >= 0 ? first / V : -((V - 1 - first) / V);
  return {chunk, static_cast<int32_t>(first - chunk * V)};
}

// Starts the copies of all strips. Chunks before the first image or past the last are left out.
template <class Tile, class Win>
DDSM_DEVICE void load_strips(const HeadParams& p, const Win& window, int32_t m0) {
  using T = typename Tile::Element;
  constexpr int V = HeadLayout<Tile>::V;
  const int chunks = HeadLayout<Tile>::strip_chunks(window.kernel, window.channels);
  const uint32_t base = HeadLayout<Tile>::strips(window.depth());
  for (int item = ptx::thread_index(); item < window.kernel * chunks; item += Tile::kThreads) {
    const int32_t r = item / chunks;
    const int64_t chunk =
        strip_of<Tile>(p, m0, r, window.channels).chunk + (item - r * chunks);
    const int64_t left = p.numbers - chunk * V;
    if (chunk < 0 || left <= 0) continue;
    load_vector<T>(base + item * 16, p.conv.source[0].data, chunk * V,
                   static_cast<int>(left < V ? left : V));
  }
  ptx::cp_async_commit();
}

// B: the weights of the block's outputs, zero past the window.
template <class Tile, class Win>
DDSM_DEVICE void load_window_weights(const HeadParams& p, const Win& window, int32_t n0) {
  using T = typename Tile::Element;
  using B = typename Tile::B;
  const WeightView& weight = p.conv.weight[0];
  const int steps = HeadLayout<Tile>::steps(window.depth());
  const int chunks = steps * B::kChunks;
  for (int item = ptx::thread_index(); item < Tile::kN * chunks; item += Tile::kThreads) {
    const int line = item / chunks, chunk = item % chunks;
    Pack<T, B::kVector> pack;
#pragma unroll
    for (int i = 0; i < B::kVector; ++i) {
      const int32_t k = chunk * B::kVector + i;
      float value = 0;
      if (n0 + line < p.conv.n && k < window.depth()) {
        const int32_t tap = k / window.channels, c = k - tap * window.channels;
        const int32_t r = tap / window.kernel, s = tap - r * window.kernel;
        value = load_number<T>(weight.data,
                               (n0 + line) * weight.out_stride + r * weight.r_stride +
                                   s * weight.s_stride + c * weight.in_stride,
                               weight.wide);
      }
      from_float(value, &pack.lane[i]);
    }
    const uint32_t stage = chunk / B::kChunks * Tile::kStageBytes + Tile::A::kBytes;
    ptx::store_shared(stage + B::chunk_address(line, chunk % B::kChunks), pack);
  }
}

// A: each pixel's window, zero outside of the image. A thread keeps its pixel.
template <class Tile, class Win>
DDSM_DEVICE void gather_windows(const HeadParams& p, const Win& window, int32_t m0) {
  using T = typename Tile::Element;
  using A = typename Tile::A;
  constexpr int kParts = Tile::kThreads / Tile::kM;  // threads of a pixel
  static_assert(Tile::kThreads % Tile::kM == 0);
  const int row = ptx::thread_index() % Tile::kM, part = ptx::thread_index() / Tile::kM;
  const int32_t padding = p.kernel / 2, m = m0 + row;
  const bool inside = m < p.conv.m;
  const auto at = p.conv.rows.at(inside ? m : 0);
  const int chunks = HeadLayout<Tile>::steps(window.depth()) * A::kChunks;
  const int strip_bytes =
      HeadLayout<Tile>::strip_chunks(window.kernel, window.channels) * 16;
  const uint32_t base = HeadLayout<Tile>::strips(window.depth());
  auto gather = [&](int chunk) {
    Pack<T, A::kVector> pack;
#pragma unroll
    for (int i = 0; i < A::kVector; ++i) {
      const int32_t k = chunk * A::kVector + i;
      const int32_t tap = k / window.channels, c = k - tap * window.channels;
      const int32_t r = tap / window.kernel, s = tap - r * window.kernel;
      const uint32_t h = static_cast<uint32_t>(at.h + r - padding);
      const uint32_t w = static_cast<uint32_t>(at.w + s - padding);
      pack.lane[i] = T{};
      if (!inside || k >= window.depth() || h >= static_cast<uint32_t>(p.height) ||
          w >= static_cast<uint32_t>(p.width)) {
        continue;
      }
      const int32_t number =
          strip_of<Tile>(p, m0, r, window.channels).phase + (row + s) * window.channels + c;
      pack.lane[i] = ptx::load_shared<T>(base + r * strip_bytes + number * sizeof(T));
    }
    const uint32_t stage = chunk / A::kChunks * Tile::kStageBytes;
    ptx::store_shared(stage + A::chunk_address(row, chunk % A::kChunks), pack);
  };
  if constexpr (Win::kKnown) {
    // Unrolled, so that taps and channels are constants; the part is the same for a whole warp.
#pragma unroll
    for (int chunk = 0; chunk < 8; ++chunk) {
      if (chunk < chunks && chunk % kParts == part) gather(chunk);
    }
  } else {
#pragma unroll 1
    for (int chunk = part; chunk < chunks; chunk += kParts) gather(chunk);
  }
}

template <class Tile, class Win>
DDSM_KERNEL(Tile::kThreads, 2)
conv_head_kernel(const HeadParams p) {
  const int32_t tiles_n = (p.conv.n + Tile::kN - 1) / Tile::kN;
  const int32_t m0 = ptx::block_index() / tiles_n * Tile::kM;
  const int32_t n0 = ptx::block_index() % tiles_n * Tile::kN;
  const Win window(p);
  ptx::wait_for_kernel_before();
  ptx::allow_kernel_after();
  load_strips<Tile>(p, window, m0);
  load_window_weights<Tile>(p, window, n0);
  ptx::cp_async_wait<0>();
  ptx::sync_threads();
  gather_windows<Tile>(p, window, m0);
  ptx::sync_threads();
  Tile tile;
  tile.clear();
  const int steps = HeadLayout<Tile>::steps(window.depth());
  for (int step = 0; step < steps; ++step) tile.multiply(step * Tile::kStageBytes);
  ptx::sync_threads();
  tile.store_sums();
  ptx::sync_threads();
  finish_tile<Tile>(p.conv, m0, n0);
}

template <class Tile, class Win>
const char* launch_window(const HeadParams& p, void* stream) {
  using Layout = HeadLayout<Tile>;
  const int32_t depth = p.kernel * p.kernel * p.channels;
  const int64_t bytes = int64_t(Layout::strips(depth)) +
                        16 * p.kernel * Layout::strip_chunks(p.kernel, p.channels);
  const int64_t tiles = blocks_of(p.conv.m, Tile::kM) * blocks_of(p.conv.n, Tile::kN);
  const LaunchShape shape{tiles, 1, Tile::kThreads,
                          bytes > Tile::kOutBytes ? bytes : Tile::kOutBytes, p.overlaps != 0};
  return launch("conv_head", conv_head_kernel<Tile, Win>, shape, stream, p);
}

template <class MathKind, int kTile>
const char* launch_tile(const HeadParams& p, void* stream) {
  using Tile = BlockTile<kTile, MathKind, Major::kK, Major::kK>;
  // 3x3 windows of RGB images: the usual case.
  if (p.kernel == 3 && p.channels == 3) return launch_window<Tile, Window<3, 3>>(p, stream);
  return launch_window<Tile, Window<0, 0>>(p, stream);
}

// Full precision has one tile; else as wide as the output, which each pixel is gathered for once.
template <class MathKind>
const char* launch_head(const HeadParams& p, void* stream) {
  if constexpr (!MathKind::kIeee) {
    if (p.conv.n > 64) return launch_tile<MathKind, 0>(p, stream);
    if (p.conv.n > 32) return launch_tile<MathKind, 1>(p, stream);
    return launch_tile<MathKind, 3>(p, stream);
  }
  return launch_tile<MathKind, kPlainTile>(p, stream);
}

void print_choice(const HeadParams& p) {
  if (!getenv("DDSM_PRINT_CHOICES")) return;
  fprintf(stderr, "ddsm_ext: sliced_conv2d m=%d n=%d k=%d: head kernel\n", p.conv.m, p.conv.n,
          p.kernel * p.kernel * p.channels);
}

}  // namespace

const char* head_refusal(const Conv2dCudaForwardArgs& args) {
  const Conv2dShape& s = args.shape;
  const int64_t kernel = args.weight.kernel, c = args.x.channels;
  if (args.options.tile > 0 || args.options.splits > 0) return "its tile or splits were forced";
  if (args.x2.data || args.parts > 1 || args.shortcut.x.data) return "several weights";
  if (args.activation != Activation::kNone || args.gate) return "an activation or a gate";
  if (kernel < 2 || kernel * kernel * c > kMostDepth) return "its window is too small or large";
  if (s.stride != 1 || s.scale != 1 || s.out_height != s.height || s.out_width != s.width) {
    return "its output is of another size";
  }
  if (s.padding != kernel / 2) return "its zeros are not the same on both sides";
  auto dense = [](int64_t count, int64_t stride, int64_t adjacent) {
    return count == 1 || stride == adjacent;  // that of one element says nothing
  };
  if (reinterpret_cast<uintptr_t>(args.x.data) % 16 != 0 || !dense(s.width, args.x.w_stride, c) ||
      !dense(s.height, args.x.h_stride, s.width * c) ||
      !dense(s.images, args.x.n_stride, s.height * s.width * c)) {
    return "its pixels do not follow each other";
  }
  return nullptr;
}

const char* run_conv_head(const ConvParams& params, const Conv2dCudaForwardArgs& args, Math math,
                          void* stream) {
  const Conv2dShape& s = args.shape;
  const HeadParams p{params,
                     s.images * s.height * s.width * args.x.channels,
                     static_cast<int32_t>(s.height),
                     static_cast<int32_t>(s.width),
                     args.weight.kernel,
                     static_cast<int32_t>(args.x.channels),
                     args.options.overlaps};
  print_choice(p);
  switch (math) {
    case Math::kBFloat16:
      return launch_head<TensorCores<BFloat16>>(p, stream);
    case Math::kFloat16:
      return launch_head<TensorCores<Float16>>(p, stream);
    case Math::kTf32:
      return launch_head<TensorCores<float>>(p, stream);
    case Math::kIeee:
      return launch_head<FmaUnits>(p, stream);
  }
  return "unknown way to multiply";
}

}  // namespace ddsm
