// How sliced_layer_norm splits its work and lays out its scratch memory.
#pragma once

#include <cstdint>

#include "arithmetic.h"
#include "ddsm/layer_norm.h"

namespace ddsm {

// Rows whose per-channel sums the backward takes in the compute type before they are merged in
// double. Fixed, so that results do not depend on the number of threads.
constexpr int64_t kLayerNormBlockRows = 32;

// Scratch, in the compute type: [images][2][channels], gamma and beta with scale and shift in them;
// then, where a backward sums over rows, [images][blocks][2][channels]: of the rows of a block, the
// sums of dL/dy and of dL/dy times the normalised x.
struct LayerNormLayout {
  int64_t blocks;  // of an image
  int64_t sums;    // first byte of that part
  int64_t bytes;
};

// Static: each instruction-set variant keeps its own copy (see isa.h).
static inline LayerNormLayout layer_norm_layout(const LayerNormArgs& args) {
  const int64_t pair = 2 * args.channels * (args.dtype == DType::kFloat64 ? 8 : 4);
  const int64_t blocks = ceil_div(args.rows, kLayerNormBlockRows), sums = args.images * pair;
  return {blocks, sums, sums + (args.wants_sums() ? args.images * blocks * pair : 0)};
}

}  // namespace ddsm
