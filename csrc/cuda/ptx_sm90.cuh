// The instructions of sm_90a that ptx.cuh has not: mbarriers, bulk tensor copies (TMA), products of
// warpgroups (wgmma). PTX ISA manual; any other compiler than nvcc gets the emulator's.
#pragma once

#include "ptx.cuh"
#include "tensor_map.h"

#ifdef __CUDACC__
#include <cuda.h>
// Kernel parameters that bulk copies read in place.
#define DDSM_GRID_CONSTANT __grid_constant__
#else
#include "emulator/hopper.h"
#define DDSM_GRID_CONSTANT
#endif

namespace ddsm {

#ifdef __CUDACC__
using TensorMap = CUtensorMap;
#else
using TensorMap = TensorMapSpec;
#endif

namespace ptx {

constexpr int kWarpgroup = 128;  // threads

#ifdef __CUDACC__

DDSM_DEVICE void trap() { asm volatile("trap;\n"); }

// Registers of each thread of the running warpgroup, given back or taken from the block's.
template <int kCount>
DDSM_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kCount));
}
template <int kCount>
DDSM_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kCount));
}

// Barrier `kId` (not 0, the block's) of `kThreads` threads.
template <int kId, int kThreads>
DDSM_DEVICE void sync_some() {
  asm volatile("barrier.sync.aligned %0, %1;\n" ::"n"(kId), "n"(kThreads) : "memory");
}

DDSM_DEVICE void mbarrier_init(uint32_t address, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_window(address)),
               "r"(arrivals)
               : "memory");
}
// Makes the thread's mbarrier inits visible to bulk copies; a barrier of the block must follow.
DDSM_DEVICE void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
DDSM_DEVICE void mbarrier_arrive(uint32_t address) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_window(address))
               : "memory");
}
// Announces `bytes` of copies, and arrives.
DDSM_DEVICE void mbarrier_arrive_expect(uint32_t address, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(
                   shared_window(address)),
               "r"(bytes)
               : "memory");
}
// Until the phase of this parity has completed: the first has parity 0, the one before it 1.
DDSM_DEVICE void mbarrier_wait(uint32_t address, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_window(address)),
      "r"(parity)
      : "memory");
}

// `map` lies in a __grid_constant__ parameter.
DDSM_DEVICE void copy_tiled(const TensorMap& map, uint32_t target, uint32_t mbarrier,
                            const int32_t (&at)[4]) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2];\n" ::"r"(shared_window(target)),
      "l"(&map), "r"(shared_window(mbarrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
      : "memory");
}
DDSM_DEVICE void copy_im2col(const TensorMap& map, uint32_t target, uint32_t mbarrier,
                             const int32_t (&at)[4], uint32_t offset_w, uint32_t offset_h) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};\n" ::"r"(shared_window(target)),
      "l"(&map), "r"(shared_window(mbarrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]),
      "h"(static_cast<uint16_t>(offset_w)), "h"(static_cast<uint16_t>(offset_h))
      : "memory");
}

// Orders the sums' registers before the products that follow.
DDSM_DEVICE void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
DDSM_DEVICE void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
template <int kRunning>
DDSM_DEVICE void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kRunning) : "memory");
}
// Keeps the compiler from moving a sum in registers across the instructions around this.
template <int kSums>
DDSM_DEVICE void hold(float (&d)[kSums]) {
#pragma unroll
  for (float& sum : d) asm volatile("" : "+f"(sum)::"memory");
}

#define DDSM_SUMS_8(i)                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define DDSM_SUMS_16(i) DDSM_SUMS_8(i), DDSM_SUMS_8(i + 8)
#define DDSM_SUMS_32(i) DDSM_SUMS_16(i), DDSM_SUMS_16(i + 16)
#define DDSM_SUMS_64(i) DDSM_SUMS_32(i), DDSM_SUMS_32(i + 32)
#define DDSM_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define DDSM_NAMES_32 \
  DDSM_NAMES_16       \
      ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DDSM_NAMES_64                                                                        \
  DDSM_NAMES_32                                                                              \
      ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48" \
      ", %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// The operands after the sums: descriptors of a and b, whether d is added to, whether b is N-major.
#define DDSM_WGMMA(shape, type, names, sums, a_name, b_name, add_name, major_name)              \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " add_name ", 0;\n"                        \
               "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" names "}, " a_name \
               ", " b_name ", add, 1, 1, 0, " major_name ";\n}\n"                                \
               : sums                                                                           \
               : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(kNMajor)))
#define DDSM_WGMMA_OF(type)                                                                     \
  do {                                                                                          \
    if constexpr (kN == 32) {                                                                   \
      DDSM_WGMMA("m64n32k16", type, DDSM_NAMES_16, DDSM_SUMS_16(0), "%16", "%17", "%18", "%19"); \
    } else if constexpr (kN == 64) {                                                            \
      DDSM_WGMMA("m64n64k16", type, DDSM_NAMES_32, DDSM_SUMS_32(0), "%32", "%33", "%34", "%35"); \
    } else {                                                                                    \
      static_assert(kN == 128);                                                                 \
      DDSM_WGMMA("m64n128k16", type, DDSM_NAMES_64, DDSM_SUMS_64(0), "%64", "%65", "%66", "%67"); \
    }                                                                                           \
  } while (false)

// d [64, kN] (+)= a [64, 16] b [16, kN], of the warpgroup; a K-major, b K-major or N-major.
template <int kN, bool kNMajor>
DDSM_DEVICE void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate, BFloat16) {
  DDSM_WGMMA_OF("bf16");
}
template <int kN, bool kNMajor>
DDSM_DEVICE void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate, Float16) {
  DDSM_WGMMA_OF("f16");
}
#undef DDSM_WGMMA_OF
#undef DDSM_WGMMA
#undef DDSM_NAMES_64
#undef DDSM_NAMES_32
#undef DDSM_NAMES_16
#undef DDSM_SUMS_64
#undef DDSM_SUMS_32
#undef DDSM_SUMS_16
#undef DDSM_SUMS_8

#else

inline void trap() { throw simt::Fault("a kernel of another device was launched"); }

template <int kCount>
void give_registers() {}
template <int kCount>
void take_registers() {}

template <int kId, int kThreads>
void sync_some() {
  simt::sync_some(kId, kThreads);
}

using simt::mbarrier_init;
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint32_t address) { simt::mbarrier_arrive(address, 0); }
inline void mbarrier_arrive_expect(uint32_t address, uint32_t bytes) {
  simt::mbarrier_arrive(address, bytes);
}
using simt::copy_im2col;
using simt::copy_tiled;
using simt::mbarrier_wait;

inline uint32_t shared_window(uint32_t address) { return address; }

using simt::warpgroup_commit;
using simt::warpgroup_fence;
template <int kRunning>
void warpgroup_wait() {
  simt::warpgroup_wait(kRunning);
}
template <int kSums>
void hold(float (&)[kSums]) {}

template <int kN, bool kNMajor, class T>
void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate, T) {
  const auto number = [](uint16_t bits) { return to_float(T{bits}); };
  simt::warpgroup_product({d, a, b, accumulate, kN, kNMajor, number});
}

#endif

}  // namespace ptx
}  // namespace ddsm
