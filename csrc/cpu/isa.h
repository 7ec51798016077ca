// Which instruction set the CPU kernels use, and how one kernel source becomes one variant each.
//
// Files named *_kernel.cpp are compiled once per instruction set, with DDSM_ISA naming the
// namespace: put everything in them into `namespace ddsm::DDSM_ISA` (helpers: also unnamed or
// static). They must not use templates or inline functions of the standard library: the linker
// keeps ONE copy of such a function, which might be the AVX-512 one, for all variants. What an
// instruction set has they ask of the compiler: __AVX2__, __AVX512F__, __AVX512BF16__.
// A plain .cpp beside them chooses at run time:
//
//   DDSM_DECLARE_VARIANTS(void, sliced_linear_forward, const LinearArgs& args)
//   DDSM_CALL_VARIANT(sliced_linear_forward, args);
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

#if defined(DDSM_HAVE_X86_VARIANTS)
#define DDSM_DECLARE_VARIANTS(result, name, ...) \
  namespace portable { result name(__VA_ARGS__); } \
  namespace avx2 { result name(__VA_ARGS__); } \
  namespace avx512 { result name(__VA_ARGS__); } \
  namespace avx512_bf16 { result name(__VA_ARGS__); }
#define DDSM_CALL_VARIANT(name, ...)                                                  \
  (::ddsm::active_isa() == ::ddsm::Isa::kAvx512Bf16 ? avx512_bf16::name(__VA_ARGS__)  \
   : ::ddsm::active_isa() == ::ddsm::Isa::kAvx512   ? avx512::name(__VA_ARGS__)       \
   : ::ddsm::active_isa() == ::ddsm::Isa::kAvx2     ? avx2::name(__VA_ARGS__)         \
                                                    : portable::name(__VA_ARGS__))
#else
#define DDSM_DECLARE_VARIANTS(result, name, ...) \
  namespace portable { result name(__VA_ARGS__); }
#define DDSM_CALL_VARIANT(name, ...) portable::name(__VA_ARGS__)
#endif
