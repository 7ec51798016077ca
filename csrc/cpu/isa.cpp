#include "isa.h"

#include <atomic>

namespace ddsm {
namespace {

bool cpu_runs(Isa isa) {
#if defined(DDSM_HAVE_X86_VARIANTS)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return cpu_runs(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Bf16:
      return cpu_runs(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return isa == Isa::kPortable;
#endif
}

Isa best_isa() {
  if (cpu_runs(Isa::kAvx512Bf16)) return Isa::kAvx512Bf16;
  if (cpu_runs(Isa::kAvx512)) return Isa::kAvx512;
  if (cpu_runs(Isa::kAvx2)) return Isa::kAvx2;
  return Isa::kPortable;
}

std::atomic<int>& chosen() {
  static std::atomic<int> isa{static_cast<int>(best_isa())};
  return isa;
}

}  // namespace

Isa active_isa() { return static_cast<Isa>(chosen().load(std::memory_order_relaxed)); }

bool isa_available(Isa isa) { return cpu_runs(isa); }

bool set_isa(Isa isa) {
  if (!cpu_runs(isa)) return false;
  chosen().store(static_cast<int>(isa), std::memory_order_relaxed);
  return true;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace ddsm
