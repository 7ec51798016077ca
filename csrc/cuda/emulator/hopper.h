// What the emulator has of sm_90a, by the PTX ISA manual: mbarriers, bulk tensor copies and the
// asynchronous products of warpgroups.
#pragma once

#include <cstdint>

#include "../tensor_map.h"

namespace ddsm::simt {

void mbarrier_init(uint32_t address, uint32_t arrivals);
// Announces `bytes` of copies (0: none) and arrives.
void mbarrier_arrive(uint32_t address, uint32_t bytes);
// Returns once the phase of this parity has completed.
void mbarrier_wait(uint32_t address, uint32_t parity);

// `at`: first element of each dimension.
void copy_tiled(const TensorMapSpec& map, uint32_t target, uint32_t mbarrier,
                const int32_t (&at)[4]);
// `at`: first channel, the filter's corner (w, h), image; offsets are the tap's place from there.
void copy_im2col(const TensorMapSpec& map, uint32_t target, uint32_t mbarrier,
                 const int32_t (&at)[4], uint32_t offset_w, uint32_t offset_h);

// A box to global memory; it is read and lands when the thread waits for its copies.
void copy_out(const TensorMapSpec& map, uint32_t source, const int32_t (&at)[4]);
void copy_out_commit();
void copy_out_wait();
void pass_to_copies();

// d [64, n] (+)= a [64, 16] b [16, n], by descriptors.
struct WarpgroupProduct {
  float* d;  // the thread's n / 2 sums
  uint64_t a, b;
  bool accumulate;
  int n;
  bool b_is_n_major;
  float (*number)(uint16_t bits);
};
void warpgroup_fence();
void warpgroup_product(WarpgroupProduct product);
void warpgroup_commit();
void warpgroup_wait(int still_running);

}  // namespace ddsm::simt
