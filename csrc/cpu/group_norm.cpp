// Chooses the instruction-set variant of the group norm kernels.
#include "ddsm/group_norm.h"

#include "group_norm_layout.h"
#include "isa.h"

namespace ddsm {

DDSM_DECLARE_VARIANTS(void, group_norm_forward, const GroupNormArgs& args)
DDSM_DECLARE_VARIANTS(void, group_norm_backward, const GroupNormArgs& args)

int64_t group_norm_scratch_bytes(const GroupNormArgs& args) {
  return group_norm_layout(args).bytes;
}

void group_norm_forward(const GroupNormArgs& args) {
  if (args.n == 0 || args.pixels == 0) return;
  DDSM_CALL_VARIANT(group_norm_forward, args);
}

void group_norm_backward(const GroupNormArgs& args) {
  if (args.n == 0 || args.pixels == 0) return;
  DDSM_CALL_VARIANT(group_norm_backward, args);
}

}  // namespace ddsm
