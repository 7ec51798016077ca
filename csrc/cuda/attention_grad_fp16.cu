// The gradients of attention for Float16.
#include "attention_delta.cuh"
#include "attention_kernels.cuh"

namespace ddsm {

template <>
const char* launch_attention_grad<Float16>(const AttentionParams& params, AttentionPass pass,
    const AttentionTile& tile, int64_t blocks, void* stream) {
  const bool of_values = pass == AttentionPass::kGradValue;
  auto* launch = of_values ? launch_attention_pass<Float16, AttentionPass::kGradValue>
                           : launch_attention_pass<Float16, AttentionPass::kGradScores>;
  return launch(params, tile, blocks, stream);
}

template const char* launch_attention_delta<Float16>(const AttentionDeltaParams&, void*);

}  // namespace ddsm
