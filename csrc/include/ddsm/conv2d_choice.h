// Which algorithm computes a convolution fastest: a pure function of its shape and of a few
// measured constants of the instruction set. It knows no threads, so that results do not depend on
// them.
#pragma once

#include <cstdint>

#include "ddsm/conv2d.h"

namespace ddsm {

struct Conv2dCosts {
  double macs_per_ns;           // of a direct convolution with its panels in the cache
  double winograd_macs_per_ns;  // of the products of transformed tiles
  double input_floats_per_ns;   // input pixels x channels through padding and input transform
  double output_floats_per_ns;  // outputs through output transform and epilogue
  double panel_bytes_per_ns;    // panels streamed from memory
  double frequency_ns;          // start of one matrix product
  double rearranged_per_ns;     // panel floats made from weights
  double bf16_macs_per_ns;      // of a direct convolution that does not widen; 0: there is none
  double segment_ns;            // start of one tap of a tile of a direct convolution
  // As panel_bytes_per_ns, of F(2 x 2, 3 x 3), whose panels are fewer than half of F(4 x 4)'s.
  double small_panel_bytes_per_ns;
  double direct_ns;             // start of a direct one in a plan: its tables, a norm on its own
};

// A convolution as the choice sees it: active channels, k x k kernel, output size. For the gradient
// of x, c_in and c_out are swapped and the output is x.
struct Conv2dProblem {
  int64_t images, out_height, out_width, c_in, c_out, kernel, stride, scale;
  bool bf16;           // x, weight and y are bfloat16
  int64_t rearranged;  // allocated c_in * c_out if panels must be made for few uses, else 0
  bool grad_weight;    // the gradient of the weights instead
  bool eager;          // called by itself, not by a plan
};

// Panels of so many lanes and tiles of so many rows, of the instruction set in use.
struct Conv2dGrain {
  int64_t lanes, rows;
};

// Estimated nanoseconds on one core; infinite where the algorithm does not apply.
DDSM_EXPORT double conv2d_cost_ns(const Conv2dProblem& problem, Conv2dAlgo algo,
                                  const Conv2dCosts& costs, const Conv2dGrain& grain);

// The cheapest algorithm.
DDSM_EXPORT Conv2dAlgo conv2d_choose(const Conv2dProblem& problem, const Conv2dCosts& costs,
                         const Conv2dGrain& grain);

// Those of the instruction set in use.
DDSM_EXPORT Conv2dCosts conv2d_costs();
DDSM_EXPORT Conv2dGrain conv2d_grain();

}  // namespace ddsm
