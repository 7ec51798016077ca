// Which instruction set the CPU kernels use.
#pragma once

#include "ddsm/types.h"

namespace ddsm {

// kAvx512Bf16: kAvx512 and products of bfloat16 (vdpbf16ps).
enum class Isa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// The instruction set in use: the best this CPU and this build have, unless set_isa chose another.
DDSM_EXPORT Isa active_isa();

// True if this build contains the variant and this CPU runs it.
DDSM_EXPORT bool isa_available(Isa isa);

// Forces a variant for the whole process, for tests and comparisons; false if not available.
DDSM_EXPORT bool set_isa(Isa isa);

DDSM_EXPORT const char* isa_name(Isa isa);

}  // namespace ddsm
