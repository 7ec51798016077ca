// The attention forward for BFloat16.
#include "attention_kernels.cuh"

namespace ddsm {

template <>
const char* launch_attention_forward<BFloat16>(const AttentionParams& params,
    const AttentionTile& tile, int64_t blocks, void* stream) {
  return launch_attention_pass<BFloat16, AttentionPass::kForward>(params, tile, blocks, stream);
}

}  // namespace ddsm
