// How one kernel source becomes one variant for each instruction set.
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

#include "ddsm/isa.h"

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
