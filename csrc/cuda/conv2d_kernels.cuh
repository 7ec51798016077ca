// The kernels of the convolution and of its gradient of x, for one way to multiply, and their
// launches.
//
//   conv           (tile of y, split)       y; of a tile's splits, the one that comes last
#pragma once

#include "conv2d_epilogue.cuh"
#include "conv2d_loaders.cuh"
#include "launch.cuh"

namespace ddsm {

template <class Tile, ConvKind kKind, bool kAligned>
DDSM_KERNEL(Tile::kThreads, Tile::kResident)
conv_kernel(const ConvParams p) {
  constexpr int kColumns = columns_of_y(kKind, Tile::kN);
  const int32_t tiles_n = (p.n + kColumns - 1) / kColumns;
  const int32_t m0 = ptx::block_index() / tiles_n * Tile::kM;
  const int32_t n0 = ptx::block_index() % tiles_n * kColumns;
  const int32_t split = ptx::block_index_y();
  ptx::wait_for_kernel_before();
  ptx::allow_kernel_after();
  const int32_t first = split_begin(p.steps, split, p.splits);
  ConvLoader<Tile, kKind, kAligned> loader(p, m0, n0, first);
  Tile tile;
  run_pipeline(tile, loader, first, split_begin(p.steps, split + 1, p.splits));
  tile.store_sums();
  ptx::sync_threads();
  if (p.splits > 1 && !add_splits<Tile>(p, ptx::block_index(), split, m0)) return;
  finish_tile<Tile, kKind>(p, m0, n0);
}

template <int kTile, class MathKind, ConvKind kKind, bool kAligned>
const char* launch_conv_tile(const ConvParams& p, void* stream) {
  constexpr Major kMajorB = kKind == ConvKind::kGradient ? Major::kMN : Major::kK;
  using Tile = BlockTile<kTile, MathKind, Major::kK, kMajorB>;
  const int64_t tiles =
      blocks_of(p.m, Tile::kM) * blocks_of(p.n, columns_of_y(kKind, Tile::kN));
  const LaunchShape shape{tiles, p.splits, Tile::kThreads, Tile::kSharedBytes, p.overlaps};
  return launch("conv", conv_kernel<Tile, kKind, kAligned>, shape, stream, p);
}

template <class MathKind, ConvKind kKind, int kTile = 0>
const char* launch_aligned(const ConvParams& p, int32_t tile, void* stream) {
  if constexpr (kTile < kPortableTiles) {
    if (tile == kTile) return launch_conv_tile<kTile, MathKind, kKind, true>(p, stream);
    return launch_aligned<MathKind, kKind, kTile + 1>(p, tile, stream);
  }
  return "no kernel for this tile";
}

template <class MathKind, ConvKind kKind>
const char* launch_kind(const ConvParams& p, int32_t tile, bool aligned, void* stream) {
  if constexpr (!MathKind::kIeee) {
    if (aligned) return launch_aligned<MathKind, kKind>(p, tile, stream);
  }
  if (tile != kPlainTile) return "no kernel for this tile";
  return launch_conv_tile<kPlainTile, MathKind, kKind, false>(p, stream);
}

template <class MathKind>
const char* launch_conv(const ConvParams& params, int32_t tile, bool gradient, bool aligned,
                        void* stream) {
  return gradient ? launch_kind<MathKind, ConvKind::kGradient>(params, tile, aligned, stream)
                  : launch_kind<MathKind, ConvKind::kForward>(params, tile, aligned, stream);
}

template <class MathKind>
const char* launch_conv_activated(const ConvParams& params, int32_t tile, bool geglu, bool aligned,
                                  void* stream) {
  return geglu ? launch_kind<MathKind, ConvKind::kGeglu>(params, tile, aligned, stream)
               : launch_kind<MathKind, ConvKind::kActivated>(params, tile, aligned, stream);
}

}  // namespace ddsm
