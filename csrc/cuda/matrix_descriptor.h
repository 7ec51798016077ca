// The 64 bits by which wgmma finds an operand in shared memory. Pure. No CUDA header.
//
// PTX ISA, "Asynchronous warpgroup level matrix shared memory layout": "Matrix descriptor format"
// and "Strides". Operands here have the 128-byte swizzle and lie at multiples of its repeating
// pattern (kSwizzleAtomBytes), so the base offset is 0.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ddsm {

struct MatrixDescriptor {
  uint32_t start;           // address in the shared window, bits 0 to 13 in units of 16 bytes
  uint32_t leading_bytes;   // 16 to 29
  uint32_t stride_bytes;    // 32 to 45
  uint32_t base_offset;     // 49 to 51
  uint32_t swizzle;         // 62 to 63: 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes
};

DDSM_HOST_DEVICE constexpr uint64_t descriptor_field(uint32_t bytes) {
  return (bytes & 0x3FFFF) >> 4;
}

DDSM_HOST_DEVICE constexpr uint64_t encode(const MatrixDescriptor& d) {
  return descriptor_field(d.start) | descriptor_field(d.leading_bytes) << 16 |
         descriptor_field(d.stride_bytes) << 32 | uint64_t(d.base_offset & 7) << 49 |
         uint64_t(d.swizzle & 3) << 62;
}

constexpr MatrixDescriptor decode(uint64_t bits) {
  constexpr uint64_t kField = 0x3FFF;
  return {static_cast<uint32_t>((bits & kField) << 4),
          static_cast<uint32_t>((bits >> 16 & kField) << 4),
          static_cast<uint32_t>((bits >> 32 & kField) << 4),
          static_cast<uint32_t>(bits >> 49 & 7), static_cast<uint32_t>(bits >> 62)};
}

// Rows of 128 bytes along K, 8 of them 1024 bytes; the leading offset is not used ("assumed 1").
DDSM_HOST_DEVICE constexpr uint64_t k_major_descriptor(uint32_t start) {
  return encode({start, 16, 1024, 0, 1});
}
// Rows of 128 bytes along M or N, a row for each k: 8 of them 1024 bytes (stride offset), and
// `panel_bytes` from 64 columns to the next 64 (leading offset).
DDSM_HOST_DEVICE constexpr uint64_t mn_major_descriptor(uint32_t start, uint32_t panel_bytes) {
  return encode({start, panel_bytes, 1024, 0, 1});
}

}  // namespace ddsm
