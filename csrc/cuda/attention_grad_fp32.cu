// The gradients of attention for float.
#include "attention_delta.cuh"
#include "attention_kernels.cuh"

namespace ddsm {

template <>
const char* launch_attention_grad<float>(const AttentionParams& params, AttentionPass pass,
    const AttentionTile& tile, int64_t blocks, void* stream) {
  const bool of_values = pass == AttentionPass::kGradValue;
  auto* launch = of_values ? launch_attention_pass<float, AttentionPass::kGradValue>
                           : launch_attention_pass<float, AttentionPass::kGradScores>;
  return launch(params, tile, blocks, stream);
}

template const char* launch_attention_delta<float>(const AttentionDeltaParams&, void*);

}  // namespace ddsm
