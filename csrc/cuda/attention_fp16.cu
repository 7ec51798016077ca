// The attention forward for Float16.
#include "attention_kernels.cuh"

namespace ddsm {

template <>
const char* launch_attention_forward<Float16>(const AttentionParams& params,
    const AttentionTile& tile, int64_t blocks, void* stream) {
  return launch_attention_pass<Float16, AttentionPass::kForward>(params, tile, blocks, stream);
}

}  // namespace ddsm
