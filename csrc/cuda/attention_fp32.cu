// The attention forward for float.
#include "attention_kernels.cuh"

namespace ddsm {

template <>
const char* launch_attention_forward<float>(const AttentionParams& params,
    const AttentionTile& tile, int64_t blocks, void* stream) {
  return launch_attention_pass<float, AttentionPass::kForward>(params, tile, blocks, stream);
}

}  // namespace ddsm
