// Every instruction that the kernels use beyond plain arithmetic. nvcc emits the instruction; any
// other compiler gets the same semantics from the emulator, with the fragment layouts of the PTX
// ISA manual ("Matrix Fragments for mma.m16n8k16", "... mma.m16n8k8", "ldmatrix").
//
// Shared memory is one dynamic block, addressed by byte offsets from its start.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"
#include "numbers.cuh"

#ifdef __CUDACC__
#define DDSM_DEVICE __device__ __forceinline__
#define DDSM_KERNEL(threads, resident) __global__ void __launch_bounds__(threads, resident)
#else
#include "emulator/simt.h"
#define DDSM_DEVICE inline
#define DDSM_KERNEL(threads, resident) void
#endif

namespace ddsm::ptx {

#ifdef __CUDACC__

DDSM_DEVICE unsigned thread_index() { return threadIdx.x; }
DDSM_DEVICE unsigned block_index() { return blockIdx.x; }
DDSM_DEVICE unsigned block_index_y() { return blockIdx.y; }
DDSM_DEVICE unsigned grid_size() { return gridDim.x; }
DDSM_DEVICE void sync_threads() { __syncthreads(); }
DDSM_DEVICE void sync_warp() { __syncwarp(); }

DDSM_DEVICE unsigned char* shared_memory() {
  // 1024: where the pattern of the 128-byte swizzle of sm_90a begins.
  extern __shared__ __align__(1024) unsigned char ddsm_shared[];
  return ddsm_shared;
}
DDSM_DEVICE uint32_t shared_window(uint32_t address) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory())) + address;
}

template <class T>
DDSM_DEVICE T load_shared(uint32_t address) {
  return *reinterpret_cast<const T*>(shared_memory() + address);
}
template <class T>
DDSM_DEVICE void store_shared(uint32_t address, T value) {
  *reinterpret_cast<T*>(shared_memory() + address) = value;
}
template <class T>
DDSM_DEVICE T load_global(const T* address) {
  return *address;
}
// 16 bytes in one instruction; of a structure of smaller numbers the compiler makes several.
template <class T>
DDSM_DEVICE void store_global(T* address, T value) {
  if constexpr (sizeof(T) == 16 && alignof(T) == 16) {
    uint4 words;
    memcpy(&words, &value, sizeof words);
    // As an instruction: the compiler takes a copy by parts apart again.
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"l"(
                     __cvta_generic_to_global(address)),
                 "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
                 : "memory");
  } else {
    *address = value;
  }
}

// Past the multiprocessor's own cache: what other blocks of the launch wrote.
template <class T>
DDSM_DEVICE T load_of_blocks(const T* address) {
  T value;
  if constexpr (sizeof(T) == 16) {
    const float4 loaded = __ldcg(reinterpret_cast<const float4*>(address));
    memcpy(&value, &loaded, sizeof value);
  } else {
    static_assert(sizeof(T) == 8);
    const float2 loaded = __ldcg(reinterpret_cast<const float2*>(address));
    memcpy(&value, &loaded, sizeof value);
  }
  return value;
}

// Counts to `last`, then to 0 again; returns the count before. What the block wrote before a
// barrier that came before the ticket is seen after a barrier by blocks that take later tickets.
DDSM_DEVICE unsigned take_ticket(unsigned* counter, unsigned last) {
  __threadfence();
  const unsigned ticket = atomicInc(counter, last);
  __threadfence();
  return ticket;
}

// See LaunchShape::overlaps. Every thread waits that touches global memory; the kernel after this
// one may begin when every block has allowed it or ended.
DDSM_DEVICE void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
DDSM_DEVICE void allow_kernel_after() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// 16 bytes to shared memory, `bytes` of them (0 to 16, even) from global memory and the rest zero.
// An H200 was seen to copy one byte more of an odd number.
DDSM_DEVICE void cp_async(uint32_t address, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_window(address)),
               "l"(__cvta_generic_to_global(source)), "r"(bytes));
}
DDSM_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int kRunning>
DDSM_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kRunning) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
DDSM_DEVICE void ldmatrix(uint32_t (&d)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared_window(address)));
}
DDSM_DEVICE void ldmatrix_trans(uint32_t (&d)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared_window(address)));
}

#define DDSM_MMA(shape, type)                                                               \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                      \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"     \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
// d += a b: a [16, k], b [k, 8], d [16, 8]
DDSM_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, BFloat16) {
  DDSM_MMA("m16n8k16", "bf16");
}
DDSM_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Float16) {
  DDSM_MMA("m16n8k16", "f16");
}
DDSM_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float) {
  DDSM_MMA("m16n8k8", "tf32");
}
#undef DDSM_MMA

// What `lane` of the warp gives for value; all lanes must call it.
DDSM_DEVICE float shuffle(float value, int lane) { return __shfl_sync(~0u, value, lane); }

// 2^x, at most 2^-22 of it off.
DDSM_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// The error function, by nvcc's code without branches.
DDSM_DEVICE float erf(float x) { return erff(x); }

// 1 / x, at most one unit in the last place off; 0 where that is below the normal numbers.
DDSM_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// 1 / sqrt(x) to some 40 bits, without the branches and calls of the exact one: the instruction has
// 20, Newton's step doubles them. Of infinity and 0 as they are.
DDSM_DEVICE double reciprocal_sqrt(double x) {
  double y;
  asm("rsqrt.approx.ftz.f64 %0, %1;\n" : "=d"(y) : "d"(x));
  const double error = fma(-x * y, y, 1.0);
  return error == error ? fma(0.5 * y, error, y) : y;
}

// float bits to the nearest tf32 number, ties away from zero.
DDSM_DEVICE uint32_t to_tf32(uint32_t x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(y) : "f"(__uint_as_float(x)));
  return y;
}

#else

using simt::block_index;
using simt::block_index_y;
using simt::grid_size;
using simt::sync_threads;
using simt::sync_warp;
using simt::thread_index;

template <class T>
T load_shared(uint32_t address) {
  T value;
  memcpy(&value, simt::shared(address, sizeof(T), simt::Access::kRead), sizeof(T));
  return value;
}
template <class T>
void store_shared(uint32_t address, T value) {
  memcpy(simt::shared(address, sizeof(T), simt::Access::kWrite), &value, sizeof(T));
}
template <class T>
T load_global(const T* address) {
  T value;
  memcpy(&value, simt::global(address, sizeof(T), simt::Access::kRead), sizeof(T));
  return value;
}
template <class T>
void store_global(T* address, T value) {
  memcpy(simt::global(address, sizeof(T), simt::Access::kWrite), &value, sizeof(T));
}

template <class T>
T load_of_blocks(const T* address) {
  return load_global(address);
}
using simt::allow_kernel_after;
using simt::take_ticket;
using simt::wait_for_kernel_before;

inline void cp_async(uint32_t address, const void* source, int bytes) {
  simt::copy_async(address, source, bytes);
}
inline void cp_async_commit() { simt::commit_group(); }
template <int kRunning>
void cp_async_wait() {
  simt::wait_groups(kRunning);
}

namespace host {

struct MatrixLoad {
  uint32_t address;
  uint32_t* d;
  bool transposed;
};

inline void load_matrices(void* const* operands) {
  auto lane_operand = [&](int lane) { return static_cast<MatrixLoad*>(operands[lane]); };
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t rows[8][8];
    for (int r = 0; r < 8; ++r) {
      const uint32_t address = lane_operand(matrix * 8 + r)->address;
      memcpy(rows[r], simt::shared(address, 16, simt::Access::kRead), 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      MatrixLoad* load = lane_operand(lane);
      const int line = lane / 4, pair = lane % 4 * 2;
      const uint32_t low = load->transposed ? rows[pair][line] : rows[line][pair];
      const uint32_t high = load->transposed ? rows[pair + 1][line] : rows[line][pair + 1];
      load->d[matrix] = low | high << 16;
    }
  }
}

template <class T>
struct Product {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

// Element `i` of a 32-bit register that holds 4 / sizeof(T) of them; tf32 ignores 13 bits.
template <class T>
float element(uint32_t word, int i) {
  T value;
  if (sizeof(T) == 4) word &= ~0x1FFFu;
  memcpy(&value, reinterpret_cast<char*>(&word) + i * sizeof(T), sizeof(T));
  return to_float(value);
}

template <class T>
void multiply(void* const* operands) {
  constexpr int kPer = 4 / sizeof(T), kK = 8 * kPer;
  float a[16][kK], b[kK][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* p = static_cast<Product<T>*>(operands[lane]);
    const int group = lane / 4, in_group = lane % 4;
    for (int r = 0; r < 4; ++r) {
      for (int i = 0; i < kPer; ++i) {
        const int k = in_group * kPer + i + r / 2 * 4 * kPer;
        a[group + r % 2 * 8][k] = element<T>(p->a[r], i);
        if (r < 2) b[in_group * kPer + i + r * 4 * kPer][group] = element<T>(p->b[r], i);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto* p = static_cast<Product<T>*>(operands[lane]);
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
      double sum = p->d[r];
      for (int k = 0; k < kK; ++k) sum += double(a[row][k]) * b[k][column];
      p->d[r] = static_cast<float>(sum);
    }
  }
}

struct Shuffle {
  float value;
  int lane;
  float result;
};

inline void shuffle_lanes(void* const* operands) {
  auto of = [&](int lane) { return static_cast<Shuffle*>(operands[lane]); };
  for (int lane = 0; lane < 32; ++lane) of(lane)->result = of(of(lane)->lane)->value;
}

}  // namespace host

inline void ldmatrix(uint32_t (&d)[4], uint32_t address) {
  host::MatrixLoad load{address, d, false};
  simt::warp_instruction(host::load_matrices, &load);
}
inline void ldmatrix_trans(uint32_t (&d)[4], uint32_t address) {
  host::MatrixLoad load{address, d, true};
  simt::warp_instruction(host::load_matrices, &load);
}
template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T) {
  host::Product<T> product{d, a, {b0, b1}};
  simt::warp_instruction(host::multiply<T>, &product);
}

inline float shuffle(float value, int lane) {
  host::Shuffle shuffle{value, lane, 0};
  simt::warp_instruction(host::shuffle_lanes, &shuffle);
  return shuffle.result;
}

inline float exp2(float x) { return std::exp2(x); }
inline float erf(float x) { return std::erf(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline double reciprocal_sqrt(double x) { return 1 / std::sqrt(x); }

inline uint32_t to_tf32(uint32_t x) {
  const float value = float_of(x);
  return value - value == 0 ? (x + 0x1000) & ~0x1FFFu : x;  // infinities and NaN stay
}

#endif

}  // namespace ddsm::ptx
