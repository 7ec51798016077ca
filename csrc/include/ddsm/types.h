// Element types and the thread pool, as every kernel sees them. No torch here.
#pragma once

#include <cstdint>
#include <type_traits>

// Seen from the Python module, which is a library of its own.
#define DDSM_EXPORT __attribute__((visibility("default")))

namespace ddsm {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16, kFloat64 };

inline int64_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// `elements` of a type behind `memory`; null stays null.
template <class Void>
inline Void* advanced(Void* memory, int64_t elements, DType dtype) {
  using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
  return memory ? static_cast<Byte*>(memory) + elements * element_bytes(dtype) : nullptr;
}

// Runs body(begin, end) over [begin, end) on torch's intra-op pool, in chunks of at least
// `grain` items; body may run on the calling thread. Defined by the bindings, so that kernels
// share torch's pool (and torch.set_num_threads) without seeing torch.
void parallel_for_raw(int64_t begin, int64_t end, int64_t grain,
                      void (*body)(int64_t, int64_t, void*), void* context);

// Threads that parallel_for_raw may use at most.
int num_threads();

template <class Body>
inline void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  parallel_for_raw(
      begin, end, grain,
      [](int64_t chunk_begin, int64_t chunk_end, void* context) {
        (*static_cast<const Body*>(context))(chunk_begin, chunk_end);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace ddsm
