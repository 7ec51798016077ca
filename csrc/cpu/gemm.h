// Matrix products whose A rows are found through pixel geometry ("indirection"): convolution,
// its two gradients and linear layers are all
//
//   y[pixel, lane] = bias[lane] + sum over sources, taps, channels of
//                    source[pixel * step + tap offset, channel] * weight[lane, depth, tap]
//
// so no padded, enlarged or concatenated input exists anywhere. Terms: a LANE is a column of y
// (an output channel; in the gradient of x an input channel), the DEPTH is what is summed over, a
// PANEL is kPanelLanes lanes of weights packed as [depth][lanes], a TILE is kTileRows pixels of y.
// Of a weight in several PARTS each makes columns of y. Under GEGLU a panel holds a vector of value
// lanes and the vector of their gate halves, which together make one vector of y.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arithmetic.h"
#include "ddsm/activation.h"
#include "ddsm/types.h"

namespace ddsm {

// One input pixel per output pixel. Taps that read the same pixel (under nearest upsampling) are
// one GemmTap whose weights add up.
struct GemmTap {
  int64_t dy, dx;   // input pixel = output grid position * step + (dy, dx); outside: zero
  int32_t n_raw;    // kernel elements r * k + s that share this pixel
  int32_t raw[4];
};

// Output pixels that share one tap list: all of them, or one residue class modulo 2.
struct GemmPhase {
  int64_t rows, cols;                          // grid of output pixels in an image
  int64_t y_offset, y_row_stride, y_col_stride;  // elements, within an image of y
  int64_t step;                                // input pixels moved per grid position
  int32_t n_taps;
  const GemmTap* taps;
  // [parts (GEGLU: 1)][panels of lanes_max][n_taps][depth_max][panel lanes] of the compute type,
  // packed before; null: gemm_multiply packs them from the weight. For kBFloat16 [..][depth_max /
  // 2, rounded up][panel lanes][2]
  const void* panels;
};

// A channels-innermost image batch; channel stride 1. Elements: the compute type.
struct GemmSource {
  const void* data;
  int64_t n_stride, h_stride, w_stride;
  int64_t height, width, channels;
  int64_t depth_offset;  // where its channels start along the weight's depth
};

// element(part, lane, depth, r, s) = data[part * part_stride + lane * lane_stride + depth *
// depth_stride + r * r_stride + s * s_stride]
struct GemmWeight {
  void* data;  // read by gemm_multiply, added to by gemm_accumulate
  int64_t lane_stride, depth_stride, r_stride, s_stride;
  int32_t kernel;  // k: kernel element r * k + s
  int32_t taps;    // how many of these there are
  int64_t part_stride = 0;  // gemm_multiply only
};

// compute kFloat32 goes with weights and y in float32 or bfloat16, kFloat64 with float64 only.
// kBFloat16, of Isa::kAvx512Bf16 alone: sources, panels, bias and y in bfloat16, sums in float32.
struct GemmArgs {
  DType compute, weight_dtype, y_dtype;
  int32_t n_sources;
  GemmSource sources[2];
  GemmWeight weight;
  void* y;  // written by gemm_multiply; the gradient (compute type) in gemm_accumulate
  int64_t images, y_n_stride, lanes;
  // gemm_multiply only
  // y = (residual + gate * act(sum of products + bias + shift)) * gain
  int64_t parts = 1;             // of `lanes` lanes each, side by side in y; 2 for GEGLU
  int64_t lanes_max, depth_max;  // allocated ones, of packed panels; lanes_max also of the bias
  const void* bias;              // [parts][lanes_max] of weight_dtype, null: zero
  const float* shift;            // [images][lanes], of each part; null: zero, as it is for GEGLU
  Activation activation = Activation::kNone;
  const void* gate;      // [images][columns of y], double for kFloat64, else float; null: one
  const void* residual;  // like y; null: zero
  double gain = 1;
  int64_t longest_sum;  // products added one after another before a new sum begins; 0: what is fast
};

// A rectangle of the work. gemm_multiply: pixels of the phase x panels of lanes. gemm_accumulate:
// all pixels; first = tiles of kTileRows lanes, second = panels of depth over all sources.
struct GemmRange {
  int64_t first_begin, first_end, second_begin, second_end;
};

struct GemmTileShape {
  int64_t rows, lanes;
};

// Static, as in arithmetic.h.
static inline bool is_glu(const GemmArgs& problem) {
  return problem.activation == Activation::kGeglu;
}

// Panels of so many lanes that hold a problem's weights.
static inline int64_t gemm_panels(const GemmArgs& problem, int64_t panel_lanes) {
  if (is_glu(problem)) return ceil_div(problem.lanes, panel_lanes / 2);
  return problem.parts * ceil_div(problem.lanes, panel_lanes);
}

// y of one phase, in parallel on torch's pool; false: no memory for the workspace.
bool gemm_multiply(const GemmArgs& problem, const GemmPhase& phase);

// weight[lane, depth, tap] += sum over pixels of y[pixel, lane] * source[pixel + tap, depth]; the
// result does not depend on the number of threads. False: no memory for the workspace.
bool gemm_accumulate(const GemmArgs& problem, const GemmPhase& phase);

// bias[lane] += sum over pixels of y[pixel, lane], all pixels of [images, rows, cols].
void gemm_accumulate_bias(const GemmArgs& problem, const GemmPhase& phase, void* bias);

// A buffer of the calling thread, aligned to 64 bytes and kept for its next call; null: no memory.
void* gemm_workspace(size_t bytes);

}  // namespace ddsm
