// The kernels of the convolution and of its gradient of x, for one way to multiply, and their
// launches.
//
//   conv           (tile of y, split)       y; of a tile's splits, the one that comes last
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
  ptx::wait_for_kernel_before();
  ptx::allow_kernel_after();
  const int32_t first = split_begin(p.steps, split, p.splits);
  ConvLoader<Tile, kGradient, kAligned> loader(p, m0, n0, first);
  Tile tile;
  run_pipeline(tile, loader, first, split_begin(p.steps, split + 1, p.splits));
  tile.store_sums();
  ptx::sync_threads();
  if (p.splits > 1 && !add_splits<Tile>(p, ptx::block_index(), split, m0)) return;
  finish_tile<Tile>(p, m0, n0);
}

template <int kTile, class MathKind, bool kGradient, bool kAligned>
const char* launch_conv_tile(const ConvParams& p, void* stream) {
  using Tile = BlockTile<kTile, MathKind, Major::kK, kGradient ? Major::kMN : Major::kK>;
  const int64_t tiles = blocks_of(p.m, Tile::kM) * blocks_of(p.n, Tile::kN);
  const LaunchShape shape{tiles, p.splits, Tile::kThreads, Tile::kSharedBytes, p.overlaps};
  return launch("conv", conv_kernel<Tile, kGradient, kAligned>, shape, stream, p);
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

}  // namespace ddsm
