// The kernels of the gradients of the convolution's weight and bias, for one way to multiply, and
// their launches. Nothing is added by atomics: every sum has one order.
//
//   grad_weight    (tile, tap and split)    adds to the gradient, or stores partial sums
//   grad_reduce    (elements)               adds the partial sums, in the order of the splits
//   bias_partial, bias_reduce               the bias gradient: pixel blocks, then their sum
#pragma once

#include "conv2d_epilogue.cuh"
#include "conv2d_loaders.cuh"
#include "launch.cuh"

namespace ddsm {

template <class Tile, bool kAligned>
DDSM_KERNEL(Tile::kThreads, Tile::kResident)
grad_weight_kernel(const GradWeightParams p) {
  using T = typename Tile::Element;
  const int32_t tiles_1 = (p.source[0].channels + Tile::kN - 1) / Tile::kN;
  const int32_t tiles_2 =
      p.source_count > 1 ? (p.source[1].channels + Tile::kN - 1) / Tile::kN : 0;
  const int32_t tile_n = ptx::block_index() % (tiles_1 + tiles_2);
  const bool second = tile_n >= tiles_1;
  const ImageView& source = p.source[second];
  const int32_t first_out = ptx::block_index() / (tiles_1 + tiles_2) * Tile::kM;
  const int32_t first_in = (tile_n - (second ? tiles_1 : 0)) * Tile::kN;
  const int32_t split = ptx::block_index_y() % p.splits;
  const int32_t tap_index = ptx::block_index_y() / p.splits;
  const auto tap = p.taps.tap(tap_index);
  GradWeightLoader<Tile, kAligned> loader{p, source, tap, first_out, first_in};
  Tile tile;
  run_pipeline(tile, loader, split_begin(p.steps, split, p.splits),
               split_begin(p.steps, split + 1, p.splits));
  tile.store_sums();
  ptx::sync_threads();
  const int64_t corner = tap.r * p.grad.r_stride + tap.s * p.grad.s_stride;
  const int32_t in_partial = second ? p.source[0].channels : 0;
  const int64_t rows = (int64_t(split) * p.taps.count() + tap_index) * p.c_out;
  for (int item = ptx::thread_index(); item < Tile::kM * Tile::kN; item += Tile::kThreads) {
    const int32_t o = first_out + item / Tile::kN, c = first_in + item % Tile::kN;
    if (o >= p.c_out || c >= source.channels) continue;
    const float sum = ptx::load_shared<float>(Tile::out_address(item / Tile::kN, item % Tile::kN));
    if (p.splits > 1) {
      ptx::store_global(p.partial + (rows + o) * p.c_in + in_partial + c, sum);
    } else {
      add_number<T>(p.grad.data,
                    corner + o * p.grad.out_stride + (source.weight_channel + c) * p.grad.in_stride,
                    p.grad.wide, sum);
    }
  }
}

constexpr int kSimpleThreads = 256;
// Blocks of grad_reduce at most; each takes its elements in strides of all of them.
constexpr int64_t kReduceBlocks = int64_t(1) << 20;

template <class T>
DDSM_KERNEL(kSimpleThreads, 1)
grad_reduce_kernel(const GradWeightParams p) {
  const int64_t count = int64_t(p.taps.count()) * p.c_out * p.c_in;
  const int64_t first = int64_t(ptx::block_index()) * kSimpleThreads + ptx::thread_index();
  for (int64_t i = first; i < count; i += int64_t(ptx::grid_size()) * kSimpleThreads) {
    float sum = 0;
    for (int32_t split = 0; split < p.splits; ++split) {
      sum += ptx::load_global(p.partial + split * count + i);
    }
    const auto in = static_cast<int32_t>(i % p.c_in);
    const int64_t row = i / p.c_in;
    const auto tap = p.taps.tap(static_cast<int32_t>(row / p.c_out));
    const bool second = in >= p.source[0].channels;
    const int64_t c =
        second ? in - p.source[0].channels + p.source[1].weight_channel
               : in + p.source[0].weight_channel;
    add_number<T>(p.grad.data,
                  row % p.c_out * p.grad.out_stride + c * p.grad.in_stride +
                      tap.r * p.grad.r_stride + tap.s * p.grad.s_stride,
                  p.grad.wide, sum);
  }
}

// Blocks: (pixel block, 32 channels); a warp reads 32 adjacent channels of a pixel.
template <class T>
DDSM_KERNEL(kSimpleThreads, 1)
bias_partial_kernel(const GradWeightParams p) {
  constexpr int kRows = kSimpleThreads / 32;
  const int lane = ptx::thread_index() % 32, row = ptx::thread_index() / 32;
  const int32_t channel_blocks = (p.c_out + 31) / 32;
  const int32_t c = ptx::block_index() % channel_blocks * 32 + lane;
  const int64_t block = ptx::block_index() / channel_blocks, first = block * kBiasPixels;
  const int64_t last = first + kBiasPixels < p.pixels ? first + kBiasPixels : p.pixels;
  float sum = 0;
  if (c < p.c_out) {
    const T* grad_y = static_cast<const T*>(p.grad_y.data) + c;
    for (int64_t i = first + row; i < last; i += kRows) {
      const auto pixel = p.rows.at(static_cast<int32_t>(i));
      sum += to_float(
          ptx::load_global(grad_y + pixel_offset(p.grad_y, pixel.image, pixel.h, pixel.w)));
    }
  }
  ptx::store_shared(ptx::thread_index() * 4, sum);
  ptx::sync_threads();
  if (row != 0 || c >= p.c_out) return;
  for (int i = 1; i < kRows; ++i) sum += ptx::load_shared<float>((i * 32 + lane) * 4);
  ptx::store_global(p.bias_partial + block * p.c_out + c, sum);
}

template <class T>
DDSM_KERNEL(kSimpleThreads, 1)
bias_reduce_kernel(const GradWeightParams p) {
  const int64_t c = int64_t(ptx::block_index()) * kSimpleThreads + ptx::thread_index();
  if (c >= p.c_out) return;
  float sum = 0;
  for (int64_t block = 0; block * kBiasPixels < p.pixels; ++block) {
    sum += ptx::load_global(p.bias_partial + block * p.c_out + c);
  }
  add_number<T>(p.grad_bias, c, p.grad.wide, sum);
}

template <int kTile, class MathKind, bool kAligned>
const char* launch_grad_tile(const GradWeightParams& p, void* stream) {
  using Tile = BlockTile<kTile, MathKind, Major::kMN, Major::kMN>;
  using T = typename MathKind::Element;
  int64_t tiles_n = blocks_of(p.source[0].channels, Tile::kN);
  if (p.source_count > 1) tiles_n += blocks_of(p.source[1].channels, Tile::kN);
  const int64_t taps = p.taps.count();
  const LaunchShape shape{blocks_of(p.c_out, Tile::kM) * tiles_n, taps * p.splits, Tile::kThreads,
                          Tile::kSharedBytes};
  const char* error = launch("grad_weight", grad_weight_kernel<Tile, kAligned>, shape, stream, p);
  if (!error && p.splits > 1) {
    const int64_t blocks = blocks_of(taps * p.c_out * p.c_in, kSimpleThreads);
    const LaunchShape reduce{blocks < kReduceBlocks ? blocks : kReduceBlocks, 1, kSimpleThreads, 0};
    error = launch("grad_reduce", grad_reduce_kernel<T>, reduce, stream, p);
  }
  if (!error && p.grad_bias) {
    const int64_t blocks = blocks_of(p.pixels, kBiasPixels) * blocks_of(p.c_out, 32);
    const LaunchShape shape{blocks, 1, kSimpleThreads, kSimpleThreads * 4};
    error = launch("bias_partial", bias_partial_kernel<T>, shape, stream, p);
    if (error) return error;
    error = launch("bias_reduce", bias_reduce_kernel<T>,
                   {blocks_of(p.c_out, kSimpleThreads), 1, kSimpleThreads, 0}, stream, p);
  }
  return error;
}

template <class MathKind, int kTile = 0>
const char* launch_grad_aligned(const GradWeightParams& p, int32_t tile, void* stream) {
  if constexpr (kTile < kPortableTiles) {
    if (tile == kTile) return launch_grad_tile<kTile, MathKind, true>(p, stream);
    return launch_grad_aligned<MathKind, kTile + 1>(p, tile, stream);
  }
  return "no kernel for this tile";
}

template <class MathKind>
const char* launch_grad_weight(const GradWeightParams& params, int32_t tile, bool aligned,
                               void* stream) {
  if constexpr (!MathKind::kIeee) {
    if (aligned) return launch_grad_aligned<MathKind>(params, tile, stream);
  }
  if (tile != kPlainTile) return "no kernel for this tile";
  return launch_grad_tile<kPlainTile, MathKind, false>(params, stream);
}

}  // namespace ddsm
