// Adjacent numbers of a type as registers hold them.
#pragma once

#include <cstring>
#include <type_traits>

#include "ptx.cuh"

namespace ddsm {

// V adjacent numbers as they lie in registers: of 16-bit numbers two in each, not a register each.
template <class T, int V>
using Row = std::conditional_t<sizeof(T) == 2 && V % 2 == 0, Pack<uint32_t, V / 2>, Pack<T, V>>;

template <int V>
struct Floats {
  float of[V];
};

template <class T, int V>
DDSM_DEVICE Row<T, V> load(const T* data) {
  return ptx::load_global(reinterpret_cast<const Row<T, V>*>(data));
}
template <class T, int V>
DDSM_DEVICE void store(T* data, const Row<T, V>& row) {
  ptx::store_global(reinterpret_cast<Row<T, V>*>(data), row);
}

DDSM_DEVICE void widen_pair(uint32_t word, float& first, float& second, BFloat16) {
  const uint32_t bits[2] = {word << 16, word & 0xFFFF0000u};
  memcpy(&first, &bits[0], sizeof first);
  memcpy(&second, &bits[1], sizeof second);
}
DDSM_DEVICE void widen_pair(uint32_t word, float& first, float& second, Float16) {
  first = to_float(Float16{static_cast<uint16_t>(word)});
  second = to_float(Float16{static_cast<uint16_t>(word >> 16)});
}

template <class T, int V>
DDSM_DEVICE void widen(const Row<T, V>& row, float (&out)[V]) {
  if constexpr (sizeof(T) == 2 && V % 2 == 0) {
#pragma unroll
    for (int i = 0; i < V; i += 2) widen_pair(row.lane[i / 2], out[i], out[i + 1], T{});
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) out[i] = to_float(row.lane[i]);
  }
}
template <class T, int V>
DDSM_DEVICE Row<T, V> narrow(const float (&in)[V]) {
  Row<T, V> row;
  if constexpr (sizeof(T) == 2 && V % 2 == 0) {
#pragma unroll
    for (int i = 0; i < V; i += 2) row.lane[i / 2] = pair_of(in[i], in[i + 1], T{});
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) from_float(in[i], &row.lane[i]);
  }
  return row;
}

}  // namespace ddsm
