// The convolution and its gradient of x on sm_90a: a persistent implicit product.
//
// One thread fills stages of shared memory by bulk copies (pixels by im2col, the weight slice in
// boxes, zero past the last channel). Two warpgroups take the block's tiles in turn: one multiplies
// a tile with wgmma while the other finishes the one before, so that the tensor cores hardly wait.
// Of tiles of 256 rows each takes half.
// Each stage has two mbarriers: full (its bytes have come) and empty (the warps that multiplied are
// done with it). A warpgroup may only wait for a stage when all tiles before its own have seen
// theirs, as parities tell the next phase from the last one and no more: that is its turn.
//
// The kernel before may still run at the start: weights are asked for before it is waited for.
#pragma once

#include "conv2d_loaders.cuh"
#include "conv2d_sm90_epilogue.cuh"
#include "launch.cuh"

namespace ddsm {

// Starts the copy of a step's weights into a stage, whose pixels must follow.
template <class Tile>
DDSM_DEVICE void load_weights(const HopperConvParams& p, const KCursor& cursor,
                              const TileWork& work, uint32_t stage) {
  const uint32_t target = stage * Tile::kStageBytes + Tile::kBytesA, full = Tile::full(stage);
  const TensorMap& weight = p.weight[cursor.source + work.part];
  const auto tap = p.conv.taps.tap(cursor.in_shortcut() ? 0 : cursor.tap);
  ptx::mbarrier_arrive_expect(full, Tile::kStageBytes);
  if constexpr (Tile::kGradient) {
#pragma unroll
    for (int panel = 0; panel < Tile::kPanels; ++panel) {
      ptx::copy_tiled(weight, target + panel * Tile::kPanelBytes, full,
                      {work.column + panel * Tile::kStep, tap.s, tap.r, cursor.channel});
    }
  } else if constexpr (Tile::kKind == ConvKind::kGeglu) {
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      ptx::copy_tiled(p.weight[block], target + block * Tile::kColumns * kHopperStepBytes, full,
                      {cursor.channel, tap.s, tap.r, work.column});
    }
  } else {
    ptx::copy_tiled(weight, target, full, {cursor.channel, tap.s, tap.r, work.column});
  }
}

// Starts the copy of its pixels. `pixel`: of the tile's first row.
template <class Tile>
DDSM_DEVICE void load_pixels(const HopperConvParams& p, const KCursor& cursor,
                             const TileWork& work, const PixelMap::Pixel& pixel, uint32_t stage) {
  int32_t corner[4] = {cursor.channel, pixel.w, pixel.h, pixel.image}, offset_w = 0, offset_h = 0;
  if (!cursor.in_shortcut()) {
    const auto tap = p.conv.taps.tap(cursor.tap);
    // An enlarged image's row h of phase i meets rows (2 * h + i + offset) >> 1 of the source.
    const int32_t shift = p.phases > 1;
    corner[1] = pixel.w * p.conv.w.step + p.corner;
    corner[2] = pixel.h * p.conv.h.step + p.corner;
    offset_w = ((work.phase % 2 + tap.w_offset) >> shift) - p.corner;
    offset_h = ((work.phase / 2 + tap.h_offset) >> shift) - p.corner;
  }
  ptx::copy_im2col(p.image[cursor.source], stage * Tile::kStageBytes, Tile::full(stage), corner,
                   offset_w, offset_h);
}

// One thread's work.
template <class Tile>
DDSM_DEVICE void run_copies(const HopperConvParams& p) {
  const auto works = static_cast<uint32_t>(p.order.works);
  RingPlace place;
  int32_t early = 0;  // weights asked for before the kernel before has ended
  if (ptx::block_index() < works) {
    const TileWork work = work_at<Tile>(p, ptx::block_index());
    KCursor cursor = cursor_at(p.conv, work.first, Tile::kStep);
    for (; early < Tile::kStages && work.first + early < work.last; ++early) {
      load_weights<Tile>(p, cursor, work, early);
      cursor.advance(p.conv, Tile::kStep);
    }
  }
  ptx::wait_for_kernel_before();
  ptx::allow_kernel_after();
  for (uint32_t index = ptx::block_index(); index < works; index += ptx::grid_size()) {
    const TileWork work = work_at<Tile>(p, index);
    const auto pixel = p.conv.rows.at(work.m0);
    KCursor cursor = cursor_at(p.conv, work.first, Tile::kStep);
#pragma unroll 1
    for (int32_t step = work.first; step < work.last; ++step) {
      if (early > 0) {
        --early;
      } else {
        ptx::mbarrier_wait(Tile::empty(place.stage), place.parity ^ 1, p.stall, kCopies,
                           place.stage);
        load_weights<Tile>(p, cursor, work, place.stage);
      }
      load_pixels<Tile>(p, cursor, work, pixel, place.stage);
      cursor.advance(p.conv, Tile::kStep);
      place.advance(Tile::kStages);
    }
  }
}

// Tells the copies, once for each warp, that the stage may be filled again.
template <class Tile>
DDSM_DEVICE void release(uint32_t stage) {
  if (ptx::elect_one()) ptx::mbarrier_arrive(Tile::empty(stage));
}

// The sums of a tile's steps.
template <class Tile>
DDSM_DEVICE void run_products(Tile& tile, const HopperConvParams& p, const TileWork& work,
                              RingPlace& place, int warpgroup) {
  const int first_row = Tile::kShared ? warpgroup * Tile::kM : 0;
  KCursor cursor = cursor_at(p.conv, work.first, Tile::kStep);
  int32_t left = p.conv.source[cursor.source].channels - cursor.channel;  // of this source
  uint32_t before = 0;
#pragma unroll 1
  for (int32_t step = work.first; step < work.last; ++step) {
    ptx::mbarrier_wait(Tile::full(place.stage), place.parity, p.stall, kProducts, place.stage);
    tile.multiply(place.stage, first_row, (left + 15) / 16, step > work.first);
    ptx::warpgroup_wait<1>();  // the products of the step before are done
    if (step > work.first) release<Tile>(before);
    before = place.stage;
    place.advance(Tile::kStages);
    left -= Tile::kStep;
    if (left > 0) continue;
    cursor.leave_source(p.conv);
    left = p.conv.source[cursor.source].channels;
  }
  if (!Tile::kShared && ptx::elect_one()) ptx::mbarrier_arrive(Tile::turn(1 - warpgroup));
  ptx::warpgroup_wait<0>();
  tile.hold();
  release<Tile>(before);
}

// A warpgroup's work: every second of the block's tiles, or its half of each.
template <class Tile>
DDSM_DEVICE void run_tiles(const HopperConvParams& p, int warpgroup) {
  const auto works = static_cast<uint32_t>(p.order.works);
  HopperEpilogue<Tile> epilogue(p, warpgroup);
  RingPlace place;
  int own = 0;  // tiles of this warpgroup
  ptx::wait_for_kernel_before();
#pragma unroll 1
  for (uint32_t index = ptx::block_index(), number = 0; index < works;
       index += ptx::grid_size(), ++number) {
    TileWork work = work_at<Tile>(p, index);
    if (!Tile::kShared && static_cast<int>(number % kConsumers) != warpgroup) {
      place.advance(Tile::kStages, work.last - work.first);
      continue;
    }
    Tile tile;
    if (Tile::kShared) work.m0 += warpgroup * Tile::kM;
    epilogue.begin(work);
    if (!Tile::kShared && number > 0) {
      ptx::mbarrier_wait(Tile::turn(warpgroup), (warpgroup == 0 ? own - 1 : own) & 1, p.stall,
                         kTurn, warpgroup);
    }
    run_products(tile, p, work, place, warpgroup);
    epilogue.finish(tile, work);
    ++own;
  }
  if (epilogue.copies()) ptx::copy_out_wait();
}

template <class Tile>
DDSM_DEVICE void prepare_barriers() {
  for (uint32_t stage = 0; stage < Tile::kStages; ++stage) {
    ptx::mbarrier_init(Tile::full(stage), 1);
    ptx::mbarrier_init(Tile::empty(stage), Tile::kOwners * ptx::kWarpgroup / 32);
  }
  for (int warpgroup = 0; warpgroup < kConsumers; ++warpgroup) {
    ptx::mbarrier_init(Tile::turn(warpgroup), ptx::kWarpgroup / 32);
    ptx::mbarrier_init(Tile::residual(warpgroup), 1);
  }
  ptx::mbarrier_init_fence();
}

template <class Tile>
DDSM_DEVICE void prefetch_maps(const HopperConvParams& p) {
  for (int i = 0; i < p.conv.source_count; ++i) ptx::prefetch(p.image[i]);
  const int parts = Tile::kKind == ConvKind::kGeglu ? 2 : p.parts;
  const int weights = parts > 1 ? parts : p.conv.source_count;
  for (int i = 0; i < weights; ++i) ptx::prefetch(p.weight[i]);
}

constexpr int kHopperThreads = (kConsumers + 1) * ptx::kWarpgroup;

template <class Tile>
DDSM_KERNEL(kHopperThreads, 1)
conv_sm90_kernel(const DDSM_GRID_CONSTANT HopperConvParams p) {
#if defined(__CUDACC__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
  ptx::trap();
#else
  const int warp = ptx::uniform(ptx::thread_index() / 32);
  if (warp == 0 && ptx::elect_one()) {
    prepare_barriers<Tile>();
    prefetch_maps<Tile>(p);
  }
  ptx::sync_threads();
  // 3 warpgroups of 168 registers a thread at most: 40 + 2 * 232 fit in the same 65536.
  if (warp >= kConsumers * ptx::kWarpgroup / 32) {
    ptx::give_registers<40>();
    if (warp == kConsumers * ptx::kWarpgroup / 32 && ptx::elect_one()) run_copies<Tile>(p);
  } else {
    ptx::take_registers<232>();
    run_tiles<Tile>(p, warp / (ptx::kWarpgroup / 32));
  }
#endif
}

template <int kTile, class T, ConvKind kKind>
const char* launch_hopper_tile(const HopperConvParams& p, int32_t multiprocessors, void* stream) {
  using Tile = HopperTile<kTile, T, kKind>;
  HopperConvParams params = p;
  params.order = TileOrder(p.conv, p.parts, p.phases, Tile::kRows, Tile::kColumns);
  const int32_t works = params.order.works;
  const LaunchShape shape{works < multiprocessors ? works : multiprocessors, 1, kHopperThreads,
                          Tile::kSharedBytes, p.conv.overlaps};
  return launch("conv_sm90", conv_sm90_kernel<Tile>, shape, stream, params);
}

constexpr bool serves(int32_t tile, ConvKind kind) {
  if (kind == ConvKind::kGradient) return serves_gradient(tile);
  return kind != ConvKind::kGeglu || serves_geglu(tile);
}

template <class T, ConvKind kKind, int kTile = kPortableTiles>
const char* launch_hopper(const HopperConvParams& p, int32_t tile, int32_t multiprocessors,
                          void* stream) {
  if constexpr (kTile < kTileCount) {
    if (tile != kTile) {
      return launch_hopper<T, kKind, kTile + 1>(p, tile, multiprocessors, stream);
    }
    if constexpr (serves(kTile, kKind)) {
      return launch_hopper_tile<kTile, T, kKind>(p, multiprocessors, stream);
    }
  }
  return "no kernel for this tile";
}

template <class T>
const char* launch_conv_sm90(const HopperConvParams& params, int32_t tile, bool gradient,
                             int32_t multiprocessors, void* stream) {
  const auto launch_kind = gradient ? launch_hopper<T, ConvKind::kGradient>
                                    : launch_hopper<T, ConvKind::kForward>;
  return launch_kind(params, tile, multiprocessors, stream);
}

template <class T>
const char* launch_conv_sm90_activated(const HopperConvParams& params, int32_t tile, bool geglu,
                                       int32_t multiprocessors, void* stream) {
  const auto launch_kind = geglu ? launch_hopper<T, ConvKind::kGeglu>
                                 : launch_hopper<T, ConvKind::kActivated>;
  return launch_kind(params, tile, multiprocessors, stream);
}

}  // namespace ddsm
