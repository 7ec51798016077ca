// Winograd convolution F(m x m, 3 x 3), stride 1: fewer multiplications than the direct form by 4
// (m = 4) or 2.25 (m = 2), for transforms of inputs, outputs and (beforehand, once) weights.
//
// Terms: a TILE is m x m outputs, a TILE ROW all tiles of m rows of an image, a FREQUENCY one of
// the (m + 2)^2 elements of a transformed tile; lanes, depth and panels are those of gemm.h. Each
// frequency is one matrix product [tiles, depth] x [depth, lanes] over panels that winograd_panels
// made: panels[frequency][lanes / kPanelLanes][panel_depth][kPanelLanes].
#pragma once

#include <cstddef>
#include <cstdint>

#include "ddsm/conv2d.h"
#include "ddsm/types.h"

namespace ddsm {

struct WinogradProblem {
  int32_t tile;  // m: 4 or 2
  DType dtype;   // of sources, residual and y: kFloat32 or kBFloat16
  // inputs
  int32_t n_sources;
  Conv2dImage sources[2];
  int64_t images, in_height, in_width;  // of the sources
  int64_t scale, padding;               // nearest enlargement (1, 2), then zeros on each side
  const float* norm;                    // as in Conv2dForwardArgs; null: none
  bool norm_silu;
  const float* panels;
  int64_t panel_depth, panel_count;  // allocated depth, allocated panels of lanes
  int64_t first_lane, lanes;         // y's channels are the lanes from first_lane on
  // added to the product
  const void* bias;  // [lanes] of bias_dtype; null: zero
  DType bias_dtype;
  const float* shift;    // [images][lanes]; null: zero
  const void* residual;  // like y; null: zero
  int64_t residual_scale = 1;  // its sides are those of y / this, enlarged (nearest neighbour)
  float gain = 1;              // y is this times the sum of all
  // outputs
  void* y;  // [images, height, width, lanes] contiguous
  int64_t height, width;
  double* moments;  // as in Conv2dForwardArgs; null: not wanted
};

// Tile rows (over all images) x panels of lanes.
struct WinogradRange {
  int64_t row_begin, row_end, panel_begin, panel_end;
};

// False: no memory for the workspace.
bool winograd_multiply(const WinogradProblem& problem);

// Gradient of the weights, float32: weight[lane, depth, r, s] += G^T [ sum over tiles of
// (A grad_y A^T)[lane] * (B^T d B)[depth] ] G. Of `problem` the tile, the sources' geometry (no
// norm) and the sizes are used. The result does not depend on the number of threads.
struct WinogradGradWeight {
  Conv2dImage grad_y;  // channels: lanes
  Conv2dWeight grad_weight;
};

// Where a pass over a block of tiles lies in the workspace; all in floats.
struct WinogradGradBlock {
  int64_t first_row, rows;  // tile rows of the block, over all images
  float *inputs, *outputs;  // [frequencies][tiles][stride], transformed
  float* sums;              // [frequencies][lanes][sum_stride]
  int64_t sum_stride;
};

// False: no memory for the workspace.
bool winograd_accumulate(const WinogradProblem& problem, const WinogradGradWeight& gradient);

}  // namespace ddsm
