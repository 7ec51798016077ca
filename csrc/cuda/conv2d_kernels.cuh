// The kernels of the convolution and of its gradient of x, for one way to multiply, and their
// launches.
//
//   conv           (tile of y, split)       y, or the split's partial sums
//   conv_reduce    (tile of y)              y from the partial sums, in the order of the splits
#pragma once

#include "conv2d_epilogue.cuh"
#include "conv2d_loaders.cuh"
#include "launch.cuh"

namespace ddsm {

template <class Tile, bool kGradient, bool kAligned>
DDSM_KERNEL(Tile::kThreads, Tile::kResident)
conv_kernel(const ConvParams p) {
  const int32_t tiles_n = (p.n + Tile::kN - 1) / Tile::kN;
  const int32_t m0 = ptx::block_index() / tiles_n * Tile::kM;
  const int32_t n0 = ptx::block_index() % tiles_n * Tile::kN;
  const int32_t split = ptx::block_index_y();
  const int32_t first = split_begin(p.steps, split, p.splits);
  ConvLoader<Tile, kGradient, kAligned> loader(p, m0, n0, first);
  Tile tile;
  run_pipeline(tile, loader, first, split_begin(p.steps, split + 1, p.splits));
  tile.store_sums();
  ptx::sync_threads();
  if (p.splits == 1) finish_tile<Tile>(p, m0, n0);
  else store_partial<Tile>(p, split, m0, n0);
}

template <class Tile>
DDSM_KERNEL(Tile::kThreads, 1)
conv_reduce_kernel(const ConvParams p) {
  const int32_t tiles_n = (p.n + Tile::kN - 1) / Tile::kN;
  const int32_t m0 = ptx::block_index() / tiles_n * Tile::kM;
  const int32_t n0 = ptx::block_index() % tiles_n * Tile::kN;
  for (int item = ptx::thread_index(); item < Tile::kM * Tile::kN; item += Tile::kThreads) {
    const int row = item / Tile::kN, column = item % Tile::kN;
    float sum = 0;
    if (m0 + row < p.m && n0 + column < p.n) {
      const float* partial = p.partial + int64_t(m0 + row) * p.n + n0 + column;
      for (int32_t split = 0; split < p.splits; ++split) {
        sum += ptx::load_global(partial + split * (int64_t(p.m) * p.n));
      }
    }
    ptx::store_shared(Tile::out_address(row, column), sum);
  }
  ptx::sync_threads();
  finish_tile<Tile>(p, m0, n0);
}

template <int kTile, class MathKind>
const char* launch_conv_reduce_tile(const ConvParams& p, void* stream) {
  // The reduction does not depend on how B lay: one kernel for both directions.
  using Tile = BlockTile<kTile, MathKind, Major::kK, Major::kK>;
  const int64_t tiles = blocks_of(p.m, Tile::kM) * blocks_of(p.n, Tile::kN);
  return launch("conv_reduce", conv_reduce_kernel<Tile>, {tiles, 1, Tile::kThreads, Tile::kOutBytes}, stream, p);
}

template <int kTile, class MathKind, bool kGradient, bool kAligned>
const char* launch_conv_tile(const ConvParams& p, void* stream) {
  using Tile = BlockTile<kTile, MathKind, Major::kK, kGradient ? Major::kMN : Major::kK>;
  const int64_t tiles = blocks_of(p.m, Tile::kM) * blocks_of(p.n, Tile::kN);
  const LaunchShape shape{tiles, p.splits, Tile::kThreads, Tile::kSharedBytes};
  const char* error = launch("conv", conv_kernel<Tile, kGradient, kAligned>, shape, stream, p);
  return error || p.splits == 1 ? error : launch_conv_reduce_tile<kTile, MathKind>(p, stream);
}

template <class MathKind, bool kGradient, int kTile = 0>
const char* launch_aligned(const ConvParams& p, int32_t tile, void* stream) {
  if constexpr (kTile < kPortableTiles) {
    if (tile == kTile) return launch_conv_tile<kTile, MathKind, kGradient, true>(p, stream);
    return launch_aligned<MathKind, kGradient, kTile + 1>(p, tile, stream);
  }
  return "no kernel for this tile";
}

template <class MathKind, bool kGradient>
const char* launch_direction(const ConvParams& p, int32_t tile, bool aligned, void* stream) {
  if constexpr (!MathKind::kIeee) {
    if (aligned) return launch_aligned<MathKind, kGradient>(p, tile, stream);
  }
  if (tile != kPlainTile) return "no kernel for this tile";
  return launch_conv_tile<kPlainTile, MathKind, kGradient, false>(p, stream);
}

template <class MathKind>
const char* launch_conv(const ConvParams& params, int32_t tile, bool gradient, bool aligned,
                        void* stream) {
  return gradient ? launch_direction<MathKind, true>(params, tile, aligned, stream)
                  : launch_direction<MathKind, false>(params, tile, aligned, stream);
}

// y from the partial sums of any kernel.
template <class MathKind>
const char* launch_conv_reduce(const ConvParams& params, void* stream) {
  return launch_conv_reduce_tile<kPlainTile, MathKind>(params, stream);
}

}  // namespace ddsm
