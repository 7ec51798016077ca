// Single instructions as small kernels: a program of its own, without torch, for a GPU of compute
// capability 9.0 (nvcc -x cu) and for the emulator (any other compiler). What the emulator gives is
// what the GPU must give, byte by byte; numbers are chosen so that sums are exact in any order.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../../csrc/cuda/ptx_sm90.cuh"

namespace ddsm::atoms {

using Bytes = std::vector<uint8_t>;

// Null, or what went wrong; result: what the kernel left.
using Run = const char* (*)(Bytes* result);

struct Atom {
  const char* name;
  const char* path;  // "sm_80" or "sm_90a": what relies on it
  const char* about;
  Run run;
  // Null: what the emulator gives is right. Else the right bytes, from plain loops.
  Bytes (*wanted)() = nullptr;
  bool question = false;  // no kernel relies on it yet: any answer is welcome
};

std::vector<Atom> portable_atoms();
std::vector<Atom> copy_atoms();
std::vector<Atom> product_atoms();

// Memory that kernels see.
class Buffer {
 public:
  Buffer(const void* content, size_t bytes, bool writable) : bytes_(bytes) {
#ifdef __CUDACC__
    if (cudaMalloc(&data_, bytes) != cudaSuccess) return;
    cudaMemcpy(data_, content, bytes, cudaMemcpyHostToDevice);
#else
    copy_.assign(static_cast<const uint8_t*>(content),
                 static_cast<const uint8_t*>(content) + bytes + 15);  // room to align
    data_ = copy_.data() + (16 - reinterpret_cast<uintptr_t>(copy_.data()) % 16) % 16;
    memcpy(data_, content, bytes);
    simt::allow_memory(data_, bytes, writable);
#endif
  }
  template <class T>
  explicit Buffer(const std::vector<T>& content)
      : Buffer(Bytes(reinterpret_cast<const uint8_t*>(content.data()),
                     reinterpret_cast<const uint8_t*>(content.data() + content.size()))) {}
  explicit Buffer(const Bytes& content) : Buffer(padded(content).data(), content.size(), false) {}
  // Output, filled with what no kernel writes.
  explicit Buffer(size_t bytes) : Buffer(Bytes(bytes + 15, 0xA5).data(), bytes, true) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  template <class T>
  T* as() {
    return static_cast<T*>(data_);
  }
  Bytes content() const {
    Bytes bytes(bytes_);
#ifdef __CUDACC__
    cudaMemcpy(bytes.data(), data_, bytes_, cudaMemcpyDeviceToHost);
#else
    memcpy(bytes.data(), data_, bytes_);
#endif
    return bytes;
  }

 private:
  static Bytes padded(Bytes content) {
    content.resize(content.size() + 15);
    return content;
  }
  void* data_ = nullptr;
  size_t bytes_;
#ifndef __CUDACC__
  Bytes copy_;
#endif
};

// Runs one block and waits for it.
template <class... Parameters, class... Arguments>
const char* run_block(void (*kernel)(Parameters...), int threads, size_t shared_bytes,
                      const Arguments&... arguments) {
#ifdef __CUDACC__
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    kernel<<<1, threads, shared_bytes>>>(arguments...);
    error = cudaGetLastError();
  }
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
  return simt::run({}, threads, shared_bytes, [&] { kernel(arguments...); });
#endif
}

// Ordinary stores to shared memory before it are seen by bulk copies and products after it.
DDSM_DEVICE void fence_async() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}

// Numbers -8 to 7 that repeat late: bfloat16, float16 and tf32 hold them, and sums of their
// products are exact in float32.
inline int small_number(uint32_t index, uint32_t seed) {
  uint32_t x = index * 2654435761u + seed * 40503u;
  x ^= x >> 15;
  x *= 2246822519u;
  return static_cast<int>((x >> 13) % 16) - 8;
}

inline uint16_t bits_of(int number, BFloat16) {
  const auto value = static_cast<float>(number);
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return static_cast<uint16_t>(bits >> 16);
}
inline uint16_t bits_of(int number, Float16) {
  if (number == 0) return 0;
  const int sign = number < 0 ? 0x8000 : 0, size = number < 0 ? -number : number;
  int exponent = 3;
  while (!(size >> exponent)) --exponent;
  return static_cast<uint16_t>(sign | (exponent + 15) << 10 | (size << (10 - exponent) & 0x3FF));
}

}  // namespace ddsm::atoms
