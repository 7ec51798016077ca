// Copies of 16-byte chunks from global to shared memory.
#pragma once

#include "ptx.cuh"

namespace ddsm {

// `count` (any number; below 1: none) of a chunk's elements from aligned memory, the rest zero.
template <class T>
DDSM_DEVICE void load_vector(uint32_t address, const void* base, int64_t offset, int count) {
  constexpr int kVector = 16 / sizeof(T);
  const int valid = count < 0 ? 0 : count < kVector ? count : kVector;
  const T* source = static_cast<const T*>(base) + (valid > 0 ? offset : 0);
  ptx::cp_async(address, source, valid * static_cast<int>(sizeof(T)));
}

// The same from memory of type S that is `stride` apart and not aligned.
template <class T, class S>
DDSM_DEVICE void load_elements(uint32_t address, const void* base, int64_t offset, int64_t stride,
                               int count) {
  constexpr int kVector = 16 / sizeof(T);
  const S* source = static_cast<const S*>(base);
  Pack<T, kVector> chunk;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float value = i < count ? to_float(ptx::load_global(source + offset + i * stride)) : 0.0f;
    from_float(value, &chunk.lane[i]);
  }
  ptx::store_shared(address, chunk);
}

}  // namespace ddsm
