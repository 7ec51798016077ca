// What the convolution kernels of sm_90a are launched with.
#pragma once

#include "conv2d_maps.h"
#include "ptx_sm90.cuh"

namespace ddsm {

// What waits for an mbarrier of the kernel.
enum HopperRole : uint32_t { kCopies, kProducts, kTurn, kResidual };

// An output's tiles in the order of the work: splits fastest, then columns, parts, rows, phases.
struct TileOrder {
  Divider splits, columns, of_part, rows;  // tiles of all parts along a row, of one, of a phase
  int32_t works;

  TileOrder() = default;
  TileOrder(const ConvParams& conv, int32_t parts, int32_t phases, int32_t tile_rows,
            int32_t tile_columns) {
    const int64_t part = blocks_of(conv.parts.columns.divisor, tile_columns);
    const int64_t row_count = blocks_of(conv.m, tile_rows);
    splits = Divider(conv.splits);
    columns = Divider(part * parts);
    of_part = Divider(part);
    rows = Divider(row_count);
    works = static_cast<int32_t>(row_count * part * parts * phases * conv.splits);
  }
};

struct HopperConvParams {
  TensorMap image[kMostSources];   // of each source
  TensorMap weight[kMostSources];  // that meets it; of the one source's parts where there are more
  TensorMap y, residual;
  ConvParams conv;
  TileOrder order;
  int32_t parts, phases;  // weights side by side; classes of pixels of an enlarged image
  int32_t corner;         // where a filter's first tap begins, relative to its pixel
  bool copies_y, copies_residual;  // by the maps, in boxes; else by threads
  ptx::Stall* stall;               // memory of the host; null: none could be had
};

// Instantiated in conv2d_sm90_*.cu; `tile` is one of the sm_90a path.
template <class T>
const char* launch_conv_sm90(const HopperConvParams& params, int32_t tile, bool gradient,
                             int32_t multiprocessors, void* stream);
// In conv2d_sm90_activated_*.cu.
template <class T>
const char* launch_conv_sm90_activated(const HopperConvParams& params, int32_t tile, bool geglu,
                                       int32_t multiprocessors, void* stream);

// Encodes the tensor maps and launches one of them (conv2d_sm90.cu).
const char* run_conv_sm90(const ConvParams& params, const ConvGeometry& geometry, int32_t tile,
                          int32_t multiprocessors, void* stream);

}  // namespace ddsm
