// Shared memory of the sm_90a convolution, and a warpgroup's products on it.
#pragma once

#include "conv2d_sm90.cuh"
#include "matrix_descriptor.h"

namespace ddsm {

constexpr int kHopperSharedBytes = 227 * 1024;  // that a block may have
constexpr int kMostHopperStages = 8;
constexpr int kConsumers = 2;  // warpgroups that multiply

// A place in the ring of stages, counted over all steps that the block copies.
struct RingPlace {
  uint32_t stage = 0, parity = 0;

  DDSM_DEVICE void advance(uint32_t stages, uint32_t steps = 1) {
    stage += steps;
    if (stage < stages) return;
    const uint32_t rounds = stage / stages;
    stage -= rounds * stages;
    parity ^= rounds & 1;
  }
};

template <int kTile, class T, ConvKind kKindOfConv>
struct HopperTile {
  using Element = T;
  static constexpr ConvKind kKind = kKindOfConv;
  static constexpr bool kGradient = kKind == ConvKind::kGradient;
  // Whether both warpgroups take one tile, so that the weights of a step serve twice the rows.
  static constexpr bool kShared = is_shared_tile(kTile);
  static constexpr int kOwners = kShared ? kConsumers : 1;
  static constexpr int kRows = kTiles[kTile].m, kN = kTiles[kTile].n;
  static constexpr int kColumns = columns_of_y(kKind, kN);
  static constexpr int kM = kRows / kOwners;  // rows of a warpgroup
  static constexpr int kHalves = kM / 64;  // wgmma takes 64 rows
  static constexpr int kStep = static_cast<int>(kBoxElements);
  static constexpr int kParts = kStep / 16;  // products of a step: wgmma takes 16 of K
  static_assert(kM % 64 == 0 && sizeof(T) == 2);

  // Forward: kN rows of a step. Gradient: for each k a row of 64 columns, in panels of 64.
  static constexpr int kBytesA = kRows * kHopperStepBytes;
  static constexpr int kPanelBytes = kStep * kHopperStepBytes;
  static constexpr int kPanels = kN / kStep;
  static_assert(!kGradient || kN % kStep == 0);
  static constexpr int kStageBytes =
      kBytesA + (kGradient ? kPanels * kPanelBytes : kN * kHopperStepBytes);
  static_assert(kStageBytes % kSwizzleAtomBytes == 0);

  // A warpgroup's outputs (its residual before) as rows of at most 64 columns, in boxes of kM rows,
  // permuted as a bulk copy has them: the 8 rows and 4 words that a warp stores meet all 32 banks.
  static constexpr int kOutColumns = kColumns < 64 ? kColumns : 64;
  static constexpr int kOutRowBytes = kOutColumns * 2;
  static constexpr int kOutBoxBytes = kM * kOutRowBytes, kOutBytes = kM * kColumns * 2;
  // Bias and shift of each half, and behind them the gates.
  static constexpr int kSumTermsBytes = kHalves * kN * 4;
  static constexpr int kTermsBytes =
      kSumTermsBytes + (is_activated(kKind) ? kHalves * kColumns * 4 : 0);
  static constexpr int kBarrierBytes = 8 * 2 * (kMostHopperStages + kConsumers);
  static constexpr int kTicketBytes = 4 * kConsumers;
  static constexpr int kRoom =
      (kHopperSharedBytes - kConsumers * (kOutBytes + kTermsBytes) -
       kBarrierBytes - kTicketBytes) /
      kStageBytes;
  static constexpr int kStages = kRoom < kMostHopperStages ? kRoom : kMostHopperStages;
  static constexpr int kOutBegin = kStages * kStageBytes;
  static constexpr int kTermsBegin = kOutBegin + kConsumers * kOutBytes;
  static constexpr int kBarriers = kTermsBegin + kConsumers * kTermsBytes;
  static constexpr int kTickets = kBarriers + kBarrierBytes;
  static constexpr int kSharedBytes = kTickets + kTicketBytes;

  // mbarriers. Of a stage: its bytes have come; the warps that multiplied are done with it. Of a
  // warpgroup: the other one has seen all of its tile's stages; its residual has come.
  static DDSM_DEVICE uint32_t full(uint32_t stage) { return kBarriers + stage * 16; }
  static DDSM_DEVICE uint32_t empty(uint32_t stage) { return kBarriers + stage * 16 + 8; }
  static DDSM_DEVICE uint32_t turn(int warpgroup) { return full(kMostHopperStages + warpgroup); }
  static DDSM_DEVICE uint32_t residual(int warpgroup) {
    return empty(kMostHopperStages + warpgroup);
  }

  // The pair of outputs at an even column.
  static DDSM_DEVICE uint32_t out_address(int warpgroup, int row, int column) {
    const uint32_t box = kOutBegin + warpgroup * kOutBytes + column / kOutColumns * kOutBoxBytes;
    return box + swizzled(row * kOutRowBytes + column % kOutColumns * 2, kOutRowBytes);
  }
  static DDSM_DEVICE uint32_t term_address(int warpgroup, int half, int column) {
    return kTermsBegin + warpgroup * kTermsBytes + (half * kN + column) * 4;
  }
  static DDSM_DEVICE uint32_t gate_address(int warpgroup, int half, int column) {
    return kTermsBegin + warpgroup * kTermsBytes + kSumTermsBytes + (half * kColumns + column) * 4;
  }

  // Element i: row warp * 16 + lane / 4 + i / 2 % 2 * 8 of its half, column i / 4 * 8 +
  // lane % 4 * 2 + i % 2, as wgmma has it.
  float sums[kHalves][kN / 2];

  // Starts the products of a stage's first `parts` parts; they add to the sums, or replace them.
  // Each count has code without branches between products and commit: else they wait for another.
  // first_row: of the warpgroup in the tile.
  DDSM_DEVICE void multiply(uint32_t stage, int first_row, int parts, bool add) {
    if (parts >= kParts) return multiply_parts<kParts>(stage, first_row, add);
    switch (parts) {
      case 1: return multiply_parts<1>(stage, first_row, add);
      case 2: return multiply_parts<2>(stage, first_row, add);
      default: return multiply_parts<3>(stage, first_row, add);
    }
  }

  template <int kCount>
  DDSM_DEVICE void multiply_parts(uint32_t stage, int first_row, bool add) {
    const uint32_t a = ptx::shared_window(stage * kStageBytes + first_row * kHopperStepBytes);
    const uint32_t b = ptx::shared_window(stage * kStageBytes + kBytesA);
    hold();
    ptx::warpgroup_fence();
#pragma unroll
    for (int part = 0; part < kCount; ++part) {
      const uint64_t of_b = kGradient
                                ? mn_major_descriptor(b + part * 16 * kHopperStepBytes, kPanelBytes)
                                : k_major_descriptor(b + part * 32);
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const uint32_t rows = a + half * 64 * kHopperStepBytes;
        ptx::wgmma<kN, kGradient>(sums[half], k_major_descriptor(rows + part * 32), of_b,
                                  add || part > 0, T{});
      }
    }
    ptx::warpgroup_commit();
    hold();
  }

  DDSM_DEVICE void hold() {
#pragma unroll
    for (auto& half : sums) ptx::hold(half);
  }
};

// A tile of y, and which steps of K to sum for it.
struct TileWork {
  int32_t m0;            // first row, of its class of pixels
  int32_t phase;         // that class: 0, or 0 to 3 of an enlarged image
  int32_t part, column;  // which of several weights, and its first output channel
  int32_t tile;          // of all tiles
  int32_t split, first, last;
};

template <class Tile>
DDSM_DEVICE TileWork work_at(const HopperConvParams& p, int32_t index) {
  const TileOrder& order = p.order;
  const int32_t tile = order.splits.quotient(index);
  const int32_t split = index - tile * p.conv.splits;
  const int32_t row = order.columns.quotient(tile);
  const int32_t column = tile - row * static_cast<int32_t>(order.columns.divisor);
  const int32_t phase = order.rows.quotient(row), part = order.of_part.quotient(column);
  TileWork work{(row - phase * static_cast<int32_t>(order.rows.divisor)) * Tile::kRows,
                phase,
                part,
                (column - part * static_cast<int32_t>(order.of_part.divisor)) * Tile::kColumns,
                tile,
                split,
                0,
                p.conv.steps};
  if (p.conv.splits > 1) {
    work.first = split_begin(p.conv.steps, split, p.conv.splits);
    work.last = split_begin(p.conv.steps, split + 1, p.conv.splits);
  }
  return work;
}

}  // namespace ddsm
