// Splits sliced_layer_norm over torch's pool: by rows, and where sums over rows are merged by
// channels.
#include "ddsm/layer_norm.h"

#include "isa.h"
#include "layer_norm_layout.h"

namespace ddsm {

DDSM_DECLARE_VARIANTS(void, layer_norm_affine, const LayerNormArgs& args, int64_t begin,
                      int64_t end)
DDSM_DECLARE_VARIANTS(void, layer_norm_forward_range, const LayerNormArgs& args, int64_t begin,
                      int64_t end)
DDSM_DECLARE_VARIANTS(void, layer_norm_backward_range, const LayerNormArgs& args, int64_t begin,
                      int64_t end)
DDSM_DECLARE_VARIANTS(void, layer_norm_merge_range, const LayerNormArgs& args, int64_t begin,
                      int64_t end)

namespace {

// Elements that pay for waking a thread: about 10 us.
constexpr int64_t kGrainElements = 32768, kGradGrainElements = 16384;

// gamma and beta of all images.
void prepare(const LayerNormArgs& args) {
  if (!args.weight && !args.scale) return;
  parallel_for(0, args.images, kGradGrainElements / args.channels + 1,
               [&](int64_t begin, int64_t end) {
                 DDSM_CALL_VARIANT(layer_norm_affine, args, begin, end);
               });
}

}  // namespace

int64_t layer_norm_scratch_bytes(const LayerNormArgs& args) {
  return layer_norm_layout(args).bytes;
}

void layer_norm_forward(const LayerNormArgs& args) {
  if (args.images == 0 || args.rows == 0) return;
  prepare(args);
  parallel_for(0, args.images * args.rows, kGrainElements / args.channels + 1,
               [&](int64_t begin, int64_t end) {
                 DDSM_CALL_VARIANT(layer_norm_forward_range, args, begin, end);
               });
}

void layer_norm_backward(const LayerNormArgs& args) {
  if (args.images == 0) return;
  const int64_t blocks = layer_norm_layout(args).blocks;
  if (blocks > 0) {
    prepare(args);
    parallel_for(0, args.images * blocks,
                 kGradGrainElements / (kLayerNormBlockRows * args.channels) + 1,
                 [&](int64_t begin, int64_t end) {
                   DDSM_CALL_VARIANT(layer_norm_backward_range, args, begin, end);
                 });
  }
  if (!args.wants_sums()) return;
  parallel_for(0, args.channels, kGradGrainElements / (2 * args.images * (blocks + 1)) + 1,
               [&](int64_t begin, int64_t end) {
                 DDSM_CALL_VARIANT(layer_norm_merge_range, args, begin, end);
               });
}

}  // namespace ddsm
