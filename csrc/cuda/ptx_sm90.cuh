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

// A wait that was given up: `role` and `stage` are the kernel's own words for what waited.
struct Stall {
  uint32_t block, role, stage, parity, found;  // found: 0 as long as there was none
};

#ifdef __CUDACC__

DDSM_DEVICE void trap() { asm volatile("trap;\n"); }

// One thread of the warp, the same each time; all must call it.
DDSM_DEVICE bool elect_one() {
  uint32_t chosen;
  asm volatile(
      "{\n.reg .pred chosen;\nelect.sync _|chosen, 0xFFFFFFFF;\nselp.u32 %0, 1, 0, chosen;\n}\n"
      : "=r"(chosen));
  return chosen != 0;
}
// The value itself, which the compiler can no longer know: what depends on it is not computed
// before it is needed.
DDSM_DEVICE int hidden(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
// The compiler moves no access of memory across this.
DDSM_DEVICE void keep_order() { asm volatile("" ::: "memory"); }
// A value that all lanes have, as a uniform register.
DDSM_DEVICE int uniform(int value) { return __shfl_sync(~0u, value, 0); }

// Registers of each thread of the running warpgroup, given back or taken from the block's.
template <int kCount>
DDSM_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kCount));
}
template <int kCount>
DDSM_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kCount));
}

// Barrier `id` (not 0, the block's) of a warpgroup's threads.
DDSM_DEVICE void sync_warpgroup(int id) {
  asm volatile("barrier.sync.aligned %0, %1;\n" ::"r"(id), "n"(kWarpgroup) : "memory");
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
DDSM_DEVICE bool mbarrier_has_phase(uint32_t address, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(shared_window(address)), "r"(parity)
      : "memory");
  return done != 0;
}
DDSM_DEVICE uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(now));
  return now;
}
// Until the phase of this parity has completed: the first has parity 0, the one before it 1. What
// does not come within 2 s never will: the launch then ends with an error, and `stall`, memory of
// the host unless it is null, says where. No function may be called here: the compiler then lets
// products wait for each other.
DDSM_DEVICE void mbarrier_wait(uint32_t address, uint32_t parity, Stall* stall = nullptr,
                               uint32_t role = 0, uint32_t stage = 0) {
  uint64_t begin = 0;
#pragma unroll 1
  for (;;) {
#pragma unroll 1
    for (int tries = 0; tries < 64; ++tries) {
      if (mbarrier_has_phase(address, parity)) return;
    }
    const uint64_t now = nanoseconds();
    if (begin == 0) begin = now;
    if (now - begin < 2000000000) continue;
    if (stall) {
      *stall = Stall{blockIdx.x, role, stage, parity, 1};
      __threadfence_system();
    }
    trap();
  }
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

// A box to global memory, of the thread's open group; what threads wrote there they passed to
// copies (pass_to_copies) before a barrier.
DDSM_DEVICE void copy_out(const TensorMap& map, uint32_t source, const int32_t (&at)[4]) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];\n"
      ::"l"(&map), "r"(shared_window(source)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
      : "memory");
}
DDSM_DEVICE void copy_out_commit() { asm volatile("cp.async.bulk.commit_group;\n" ::: "memory"); }
// Until the thread's copies have read shared memory.
DDSM_DEVICE void copy_out_wait() {
  asm volatile("cp.async.bulk.wait_group.read 0;\n" ::: "memory");
}
// Makes what the thread wrote to shared memory visible to bulk copies.
DDSM_DEVICE void pass_to_copies() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
DDSM_DEVICE void prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
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
inline bool elect_one() { return thread_index() % 32 == 0; }
inline int hidden(int value) { return value; }
inline void keep_order() {}
inline int uniform(int value) { return value; }

template <int kCount>
void give_registers() {}
template <int kCount>
void take_registers() {}

inline void sync_warpgroup(int id) { simt::sync_some(id, kWarpgroup); }

using simt::mbarrier_init;
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint32_t address) { simt::mbarrier_arrive(address, 0); }
inline void mbarrier_arrive_expect(uint32_t address, uint32_t bytes) {
  simt::mbarrier_arrive(address, bytes);
}
inline void mbarrier_wait(uint32_t address, uint32_t parity, Stall* = nullptr, uint32_t = 0,
                          uint32_t = 0) {
  simt::mbarrier_wait(address, parity);
}
using simt::copy_im2col;
using simt::copy_out;
using simt::copy_out_commit;
using simt::copy_out_wait;
using simt::copy_tiled;
using simt::pass_to_copies;
inline void prefetch(const TensorMap&) {}

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
