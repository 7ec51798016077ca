// The 16-bit number formats as plain structs, converted by rounding to nearest even.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include <cstdint>
#include <cstring>

#include "ddsm/types.h"
#include "host_device.h"

namespace ddsm {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Calls run with a number of the type that values have; returns what it does, or why there is none.
template <class Run>
const char* with_number(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::kFloat32:
      return run(float{});
    case DType::kBFloat16:
      return run(BFloat16{});
    case DType::kFloat16:
      return run(Float16{});
    case DType::kFloat64:
      break;
  }
  return "no CUDA kernel for float64";
}

// V numbers as one memory access.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T lane[V];
};

#ifdef __CUDACC__
__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ inline float to_float(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ inline void from_float(float x, float* out) { *out = x; }
__device__ inline void from_float(float x, BFloat16* out) {
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ inline void from_float(float x, Float16* out) {
  out->bits = __half_as_ushort(__float2half_rn(x));
}

// Two numbers as one register, the first in its lower half: one instruction.
__device__ inline uint32_t pair_of(float first, float second, BFloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return uint32_t(__bfloat16_as_ushort(pair.y)) << 16 | __bfloat16_as_ushort(pair.x);
}
__device__ inline uint32_t pair_of(float first, float second, Float16) {
  const __half2 pair = __floats2half2_rn(first, second);
  return uint32_t(__half_as_ushort(pair.y)) << 16 | __half_as_ushort(pair.x);
}
#else
inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }
inline float to_float(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7FFF;
  if (magnitude >= 0x7C00) return float_of(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
  // The exponent's bias is corrected by a product, which also gives subnormals their value.
  return float_of(bits_of(float_of(magnitude << 13) * 0x1p112f) | sign);
}

inline void from_float(float x, float* out) { *out = x; }
inline void from_float(float x, BFloat16* out) {
  const uint32_t bits = bits_of(x);
  out->bits = x != x ? 0x7FFF : static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline void from_float(float x, Float16* out) {
  const uint16_t sign = bits_of(x) >> 16 & 0x8000;
  const float magnitude = x < 0 ? -x : x;
  uint16_t bits;
  if (x != x) {
    bits = 0x7FFF;
  } else if (magnitude >= 65520.0f) {
    bits = 0x7C00;
  } else if (magnitude < 0x1p-14f) {  // subnormal: the float sum rounds at the unit 2^-24
    bits = static_cast<uint16_t>(bits_of(magnitude + 0.5f) - bits_of(0.5f));
  } else {
    const uint32_t from = bits_of(magnitude) - (112u << 23);
    bits = static_cast<uint16_t>((from + 0xFFF + (from >> 13 & 1)) >> 13);
  }
  out->bits = sign | bits;
}

template <class T>
uint32_t pair_of(float first, float second, T) {
  T low, high;
  from_float(first, &low);
  from_float(second, &high);
  return uint32_t(high.bits) << 16 | low.bits;
}
#endif

}  // namespace ddsm
