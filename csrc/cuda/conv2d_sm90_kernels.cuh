// The convolution and its gradient of x on sm_90a: a persistent implicit product.
//
// One warpgroup's thread fills stages of shared memory by bulk copies (pixels by im2col, the weight
// slice in boxes, zero past the last channel); two warpgroups multiply 64 rows each with wgmma, and
// finish the tile while the copies of the next one come in. Each stage has two mbarriers: full
// (its bytes have come) and empty (all warps that multiply are done with it).
#pragma once

#include "conv2d_epilogue.cuh"
#include "conv2d_loaders.cuh"
#include "conv2d_sm90.cuh"
#include "launch.cuh"
#include "matrix_descriptor.h"

namespace ddsm {

constexpr int kHopperSharedBytes = 227 * 1024;  // that a block may have
constexpr int kMostHopperStages = 6;

// A stage of the ring, and how often (mod 2) the ring has been gone round.
struct RingPlace {
  uint32_t stage = 0, parity = 0;

  DDSM_DEVICE void advance(uint32_t stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Layout of shared memory, and the sums of the two warpgroups that multiply.
template <int kTile, class T, bool kGradientOfX>
struct HopperTile {
  using Element = T;
  static constexpr bool kGradient = kGradientOfX;
  static constexpr int kM = kTiles[kTile].m, kN = kTiles[kTile].n;
  static constexpr int kThreads = 2 * ptx::kWarpgroup;  // that multiply
  static constexpr int kStep = static_cast<int>(kBoxElements);
  static constexpr int kParts = kStep / 16;  // products of a step: wgmma takes 16 of K
  static_assert(kM == 2 * 64 && sizeof(T) == 2);

  // Forward: kN rows of a step. Gradient: for each k a row of 64 columns, in panels of 64.
  static constexpr int kBytesA = kM * kHopperStepBytes;
  static constexpr int kPanelBytes = kStep * kHopperStepBytes;
  static constexpr int kPanels = (kN + kStep - 1) / kStep;
  static constexpr int kStageBytes =
      kBytesA + (kGradient ? kPanels * kPanelBytes : kN * kHopperStepBytes);
  static_assert(kStageBytes % kSwizzleAtomBytes == 0);

  // The outputs as float beside the stages, which fill again meanwhile.
  static constexpr int kOutPitch = kN + 8;
  static constexpr int kOutBytes = kM * kOutPitch * 4;
  static constexpr int kBarrierBytes = 2 * 8 * kMostHopperStages;
  static constexpr int kRoom = (kHopperSharedBytes - kOutBytes - kBarrierBytes) / kStageBytes;
  static constexpr int kStages = kRoom < kMostHopperStages ? kRoom : kMostHopperStages;
  static constexpr int kOutBegin = kStages * kStageBytes;
  static constexpr int kBarriers = kOutBegin + kOutBytes;
  static constexpr int kSharedBytes = kBarriers + kBarrierBytes;

  // Element i: row warp * 16 + lane / 4 + i / 2 % 2 * 8, column i / 4 * 8 + lane % 4 * 2 + i % 2,
  // as wgmma has it; warps of the second warpgroup count on.
  float sums[kN / 2];

  static DDSM_DEVICE uint32_t full(uint32_t stage) { return kBarriers + stage * 16; }
  static DDSM_DEVICE uint32_t empty(uint32_t stage) { return kBarriers + stage * 16 + 8; }
  static DDSM_DEVICE uint32_t out_address(int row, int column) {
    return static_cast<uint32_t>(kOutBegin + (row * kOutPitch + column) * 4);
  }
  static DDSM_DEVICE void sync() { ptx::sync_some<1, kThreads>(); }

  // Starts the products of a stage's first `parts` parts; they add to the sums, or replace them.
  // Each count has code without branches between products and commit: else they wait for another.
  DDSM_DEVICE void multiply(uint32_t stage, int parts, bool add) {
    switch (parts) {
      case 1: return multiply_parts<1>(stage, add);
      case 2: return multiply_parts<2>(stage, add);
      case 3: return multiply_parts<3>(stage, add);
      default: return multiply_parts<kParts>(stage, add);
    }
  }

  template <int kCount>
  DDSM_DEVICE void multiply_parts(uint32_t stage, bool add) {
    const uint32_t rows = ptx::thread_index() / ptx::kWarpgroup * 64 * kHopperStepBytes;
    const uint32_t a = ptx::shared_window(stage * kStageBytes + rows);
    const uint32_t b = ptx::shared_window(stage * kStageBytes + kBytesA);
    ptx::hold(sums);
    ptx::warpgroup_fence();
#pragma unroll
    for (int part = 0; part < kCount; ++part) {
      const uint64_t of_b = kGradient
                                ? mn_major_descriptor(b + part * 16 * kHopperStepBytes, kPanelBytes)
                                : k_major_descriptor(b + part * 32);
      ptx::wgmma<kN, kGradient>(sums, k_major_descriptor(a + part * 32), of_b, add || part > 0,
                                T{});
    }
    ptx::warpgroup_commit();
    ptx::hold(sums);
  }

  DDSM_DEVICE void store_sums() const {
    const int warp = ptx::thread_index() / 32, lane = ptx::thread_index() % 32;
#pragma unroll
    for (int i = 0; i < kN / 2; i += 2) {
      const int row = warp * 16 + lane / 4 + i / 2 % 2 * 8;
      ptx::store_shared(out_address(row, i / 4 * 8 + lane % 4 * 2),
                        Pack<float, 2>{sums[i], sums[i + 1]});
    }
  }
};

// A tile of y, and which steps of K to sum for it.
struct TileWork {
  int32_t m0, n0, split, first, last;
};

template <class Tile>
DDSM_DEVICE int64_t work_count(const ConvParams& p) {
  const int64_t tiles_m = (p.m + Tile::kM - 1) / Tile::kM;
  const int64_t tiles_n = (p.n + Tile::kN - 1) / Tile::kN;
  return tiles_m * tiles_n * p.splits;
}

template <class Tile>
DDSM_DEVICE TileWork work_at(const ConvParams& p, int64_t index) {
  const int32_t tiles_n = (p.n + Tile::kN - 1) / Tile::kN;
  const auto tile = static_cast<int32_t>(index / p.splits);
  const auto split = static_cast<int32_t>(index % p.splits);
  return {tile / tiles_n * Tile::kM, tile % tiles_n * Tile::kN, split,
          split_begin(p.steps, split, p.splits), split_begin(p.steps, split + 1, p.splits)};
}

// Starts the copies of one step into a stage.
template <class Tile>
DDSM_DEVICE void load_stage(const HopperConvParams& p, const KCursor& cursor, int32_t n0,
                            const PixelMap::Pixel& pixel, uint32_t stage) {
  const uint32_t target = stage * Tile::kStageBytes, full = Tile::full(stage);
  const auto tap = p.conv.taps.tap(cursor.tap);
  const int32_t corner[4] = {cursor.channel, pixel.w * p.conv.w.step + p.corner,
                             pixel.h * p.conv.h.step + p.corner, pixel.image};
  ptx::mbarrier_arrive_expect(full, Tile::kStageBytes);
  ptx::copy_im2col(p.image[cursor.source], target, full, corner, tap.w_offset - p.corner,
                   tap.h_offset - p.corner);
  const TensorMap& weight = p.weight[cursor.source];
  if constexpr (Tile::kGradient) {
#pragma unroll
    for (int panel = 0; panel < Tile::kPanels; ++panel) {
      ptx::copy_tiled(weight, target + Tile::kBytesA + panel * Tile::kPanelBytes, full,
                      {n0 + panel * Tile::kStep, tap.s, tap.r, cursor.channel});
    }
  } else {
    ptx::copy_tiled(weight, target + Tile::kBytesA, full, {cursor.channel, tap.s, tap.r, n0});
  }
}

// One thread's work.
template <class Tile>
DDSM_DEVICE void run_copies(const HopperConvParams& p) {
  RingPlace place;
  const int64_t works = work_count<Tile>(p.conv);
  for (int64_t index = ptx::block_index(); index < works; index += ptx::grid_size()) {
    const TileWork work = work_at<Tile>(p.conv, index);
    const auto pixel = p.conv.rows.at(work.m0);
    KCursor cursor = cursor_at(p.conv, work.first, Tile::kStep);
#pragma unroll 1
    for (int32_t step = work.first; step < work.last; ++step) {
      ptx::mbarrier_wait(Tile::empty(place.stage), place.parity ^ 1);
      load_stage<Tile>(p, cursor, work.n0, pixel, place.stage);
      cursor.advance(p.conv, Tile::kStep);
      place.advance(Tile::kStages);
    }
  }
}

// Tells the copies, once for each warp, that the stage may be filled again.
template <class Tile>
DDSM_DEVICE void release(uint32_t stage) {
  if (ptx::thread_index() % 32 == 0) ptx::mbarrier_arrive(Tile::empty(stage));
}

// The sums of a tile's steps.
template <class Tile>
DDSM_DEVICE void run_products(Tile& tile, const ConvParams& p, const TileWork& work,
                              RingPlace& place) {
  KCursor cursor = cursor_at(p, work.first, Tile::kStep);
  uint32_t before = 0;
#pragma unroll 1
  for (int32_t step = work.first; step < work.last; ++step) {
    ptx::mbarrier_wait(Tile::full(place.stage), place.parity);
    const int32_t left = p.source[cursor.source].channels - cursor.channel;
    tile.multiply(place.stage, (left + 15) / 16, step > work.first);
    ptx::warpgroup_wait<1>();  // the products of the step before are done
    if (step > work.first) release<Tile>(before);
    before = place.stage;
    cursor.advance(p, Tile::kStep);
    place.advance(Tile::kStages);
  }
  ptx::warpgroup_wait<0>();
  ptx::hold(tile.sums);
  release<Tile>(before);
}

template <class Tile>
DDSM_DEVICE void run_tiles(const ConvParams& p) {
  RingPlace place;
  Tile tile;
  const int64_t works = work_count<Tile>(p);
#pragma unroll 1
  for (int64_t index = ptx::block_index(); index < works; index += ptx::grid_size()) {
    const TileWork work = work_at<Tile>(p, index);
    run_products(tile, p, work, place);
    Tile::sync();  // all are done with the outputs of the tile before
    tile.store_sums();
    Tile::sync();
    if (p.splits == 1) finish_tile<Tile>(p, work.m0, work.n0);
    else store_partial<Tile>(p, work.split, work.m0, work.n0);
  }
}

template <class Tile>
DDSM_KERNEL(Tile::kThreads + ptx::kWarpgroup, 1)
conv_sm90_kernel(const DDSM_GRID_CONSTANT HopperConvParams p) {
#if defined(__CUDACC__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
  ptx::trap();
#else
  if (ptx::thread_index() == 0) {
    for (uint32_t stage = 0; stage < Tile::kStages; ++stage) {
      ptx::mbarrier_init(Tile::full(stage), 1);
      ptx::mbarrier_init(Tile::empty(stage), Tile::kThreads / 32);
    }
    ptx::mbarrier_init_fence();
  }
  ptx::sync_threads();
  // 3 warpgroups of 168 registers a thread at most: 40 + 2 * 232 fit in the same 65536.
  if (ptx::thread_index() >= Tile::kThreads) {
    ptx::give_registers<40>();
    if (ptx::thread_index() == Tile::kThreads) run_copies<Tile>(p);
  } else {
    ptx::take_registers<232>();
    run_tiles<Tile>(p.conv);
  }
#endif
}

template <int kTile, class T, bool kGradient>
const char* launch_hopper_tile(const HopperConvParams& p, int32_t multiprocessors, void* stream) {
  using Tile = HopperTile<kTile, T, kGradient>;
  const int64_t works =
      blocks_of(p.conv.m, Tile::kM) * blocks_of(p.conv.n, Tile::kN) * p.conv.splits;
  const LaunchShape shape{works < multiprocessors ? works : multiprocessors, 1,
                          Tile::kThreads + ptx::kWarpgroup, Tile::kSharedBytes};
  const char* error = launch("conv_sm90", conv_sm90_kernel<Tile>, shape, stream, p);
  if (error || p.conv.splits == 1) return error;
  return launch_conv_reduce<TensorCores<T>>(p.conv, stream);
}

template <class T, int kTile = kPortableTiles>
const char* launch_hopper(const HopperConvParams& p, int32_t tile, bool gradient,
                          int32_t multiprocessors, void* stream) {
  if constexpr (kTile < kTileCount) {
    if (tile != kTile) {
      return launch_hopper<T, kTile + 1>(p, tile, gradient, multiprocessors, stream);
    }
    return gradient ? launch_hopper_tile<kTile, T, true>(p, multiprocessors, stream)
                    : launch_hopper_tile<kTile, T, false>(p, multiprocessors, stream);
  }
  return "no kernel for this tile";
}

template <class T>
const char* launch_conv_sm90(const HopperConvParams& params, int32_t tile, bool gradient,
                             int32_t multiprocessors, void* stream) {
  return launch_hopper<T>(params, tile, gradient, multiprocessors, stream);
}

}  // namespace ddsm
