// Chooses the instruction-set variant of the attention kernels.
#include "ddsm/attention.h"

#include <algorithm>

#include "isa.h"

namespace ddsm {

DDSM_DECLARE_VARIANTS(int64_t, attention_forward_scratch_bytes, const AttentionArgs& args)
DDSM_DECLARE_VARIANTS(int64_t, attention_backward_scratch_bytes, const AttentionArgs& args)
DDSM_DECLARE_VARIANTS(void, attention_forward, const AttentionArgs& args)
DDSM_DECLARE_VARIANTS(void, attention_backward, const AttentionArgs& args)

namespace {

// Multiply-adds of a slot below which another thread costs more than it brings.
constexpr int64_t kMacsPerSlot = 1 << 19;

}  // namespace

int64_t attention_slots(const AttentionArgs& args) {
  // As a double: of many keys for many queries it may be beyond 64 bits.
  const double macs = 1.0 * args.n * args.heads * args.t_q * args.t_k * args.d;
  return static_cast<int64_t>(std::clamp<double>(macs / kMacsPerSlot, 1, num_threads()));
}

int64_t attention_forward_scratch_bytes(const AttentionArgs& args) {
  return DDSM_CALL_VARIANT(attention_forward_scratch_bytes, args);
}

int64_t attention_backward_scratch_bytes(const AttentionArgs& args) {
  return DDSM_CALL_VARIANT(attention_backward_scratch_bytes, args);
}

void attention_forward(const AttentionArgs& args) {
  if (args.n * args.heads * args.t_q == 0) return;
  DDSM_CALL_VARIANT(attention_forward, args);
}

void attention_backward(const AttentionArgs& args) {
  if (args.n * args.heads == 0) return;
  DDSM_CALL_VARIANT(attention_backward, args);
}

}  // namespace ddsm
