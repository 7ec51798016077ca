// Products of warpgroups by descriptors, and what a kernel made of them needs around them.
#include "../../../csrc/cuda/matrix_descriptor.h"
#include "atoms.h"

namespace ddsm::atoms {
namespace {

constexpr int kParts = 4;  // products of 16 along K: a row of 128 bytes

struct Operand {
  uint32_t start, leading_bytes, stride_bytes, base_offset;
  uint32_t part_bytes;  // from one part of K to the next
};

template <class T, int kN, bool kNMajor>
DDSM_KERNEL(128, 1)
product_kernel(const uint32_t* memory, int words, const Operand a, const Operand b, float* d) {
  const int thread = static_cast<int>(ptx::thread_index());
  for (int i = thread; i < words; i += 128) {
    ptx::store_shared(static_cast<uint32_t>(i) * 4, ptx::load_global(memory + i));
  }
  fence_async();
  ptx::sync_threads();
  const auto descriptor = [](const Operand& o, int part) {
    const uint32_t start = ptx::shared_window(o.start + part * o.part_bytes);
    return encode({start, o.leading_bytes, o.stride_bytes, o.base_offset, 1});
  };
  float sums[kN / 2];
#pragma unroll
  for (float& sum : sums) sum = 1.0f;
  ptx::hold(sums);
  ptx::warpgroup_fence();
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    ptx::wgmma<kN, kNMajor>(sums, descriptor(a, part), descriptor(b, part), true, T{});
  }
  ptx::warpgroup_commit();
  ptx::warpgroup_wait<0>();
  ptx::hold(sums);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) ptx::store_global(d + thread * (kN / 2) + i, sums[i]);
}

constexpr int kK = 64, kM = 64;
constexpr uint32_t kAtB = 16 * 1024;  // where b begins; a lies at 0

int number_a(int row, int k) { return small_number(static_cast<uint32_t>(row * kK + k), 3); }
int number_b(int n, int k) { return small_number(static_cast<uint32_t>(n * kK + k), 4); }

// Rows of 64 elements with the 128-byte swizzle: bits 4 to 6 of an address xored with 7 to 9.
template <class T, class Number>
void place(std::vector<uint16_t>* memory, uint32_t begin, int rows, Number number) {
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < 64; ++i) {
      const uint32_t flat = begin + static_cast<uint32_t>(row * 128 + i * 2);
      const uint32_t at = flat ^ (flat >> 7 & 7) << 4;
      (*memory)[at / 2] = bits_of(number(row, i), T{});
    }
  }
}

template <class T, int kN, bool kNMajor>
std::vector<uint16_t> operands(int rows_of_a) {
  std::vector<uint16_t> memory((kAtB + 2 * 64 * 128) / 2);
  place<T>(&memory, 0, rows_of_a, number_a);
  if (!kNMajor) {
    place<T>(&memory, kAtB, kN, number_b);
  } else {  // for each k a row of 64 columns, in panels of 64 columns
    for (int panel = 0; panel < (kN + 63) / 64; ++panel) {
      place<T>(&memory, kAtB + static_cast<uint32_t>(panel) * 64 * 128, kK,
               [&](int k, int i) { return panel * 64 + i < kN ? number_b(panel * 64 + i, k) : 7; });
    }
  }
  return memory;
}

template <class T, int kN, bool kNMajor>
const char* multiply(const Operand& a, int rows_of_a, Bytes* result) {
  const auto memory = operands<T, kN, kNMajor>(rows_of_a);
  const Operand b = kNMajor ? Operand{kAtB, 64 * 128, 1024, 0, 16 * 128}
                            : Operand{kAtB, 16, 1024, 0, 32};
  Buffer of_memory(memory), d(size_t(kM) * kN * 4);
  const int words = static_cast<int>(memory.size() / 2);
  const char* error = run_block(product_kernel<T, kN, kNMajor>, 128, memory.size() * 2,
                                of_memory.as<uint32_t>(), words, a, b, d.as<float>());
  *result = d.content();
  return error;
}

template <class T, int kN, bool kNMajor>
const char* product(Bytes* result) {
  return multiply<T, kN, kNMajor>({0, 16, 1024, 0, 32}, kM, result);
}

// PTX ISA, "Register fragments for wgmma.mma_async.m64nNk16", of sums that began at 1.
template <int kN, class Row>
Bytes fragments(Row row_of_a) {
  std::vector<float> d(size_t(kM) * kN);
  for (int t = 0; t < 128; ++t) {
    for (int i = 0; i < kN / 2; ++i) {
      const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, n = i / 4 * 8 + t % 4 * 2 + i % 2;
      int sum = 1;
      for (int k = 0; k < kK; ++k) sum += number_a(row_of_a(row), k) * number_b(n, k);
      d[static_cast<size_t>(t) * (kN / 2) + i] = static_cast<float>(sum);
    }
  }
  const auto* first = reinterpret_cast<const uint8_t*>(d.data());
  return Bytes(first, first + d.size() * 4);
}

template <int kN>
Bytes plain() {
  return fragments<kN>([](int row) { return row; });
}

// H5: 8 x 8 pixels out of 10 x 10 that lie in shared memory with a halo, from (kR, kS) on.
constexpr int kHalo = 10;

template <int kR, int kS, bool kOffset>
const char* shifted(Bytes* result) {
  const uint32_t start = (kR * kHalo + kS) * 128;
  const Operand a{start, 16, kHalo * 128, kOffset ? start >> 7 & 7 : 0, 32};
  return multiply<BFloat16, 32, false>(a, kHalo * kHalo, result);
}

template <int kR, int kS>
Bytes halo() {
  return fragments<32>([](int row) { return (kR + row / 8) * kHalo + kS + row % 8; });
}

// Two warpgroups take the registers that a third gives, and use them.
constexpr int kLive = 192;

DDSM_KERNEL(384, 1)
registers_kernel(float* d) {
  const int thread = static_cast<int>(ptx::thread_index());
  if (thread >= 256) {
    ptx::give_registers<40>();
    ptx::store_global(d + thread, static_cast<float>(-thread));
  } else {
    ptx::take_registers<232>();
    float live[kLive];
#pragma unroll
    for (int i = 0; i < kLive; ++i) live[i] = static_cast<float>(thread + i);
#pragma unroll 1
    for (int round = 0; round < 3; ++round) {
      ptx::hold(live);
#pragma unroll
      for (int i = 0; i < kLive; ++i) live[i] += static_cast<float>(round * i);
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kLive; ++i) sum += live[i];
    ptx::store_global(d + thread, sum);
  }
}

const char* registers(Bytes* result) {
  Buffer d(size_t(384) * 4);
  const char* error = run_block(registers_kernel, 384, 0, d.as<float>());
  *result = d.content();
  return error;
}

// The most shared memory that a block can have, and where it begins within a swizzle's pattern.
constexpr uint32_t kMostShared = 232448;

DDSM_KERNEL(128, 1)
shared_kernel(uint32_t* d) {
  const uint32_t thread = ptx::thread_index(), at = thread * (kMostShared / 128);
  ptx::store_shared(at, thread + 1);
  ptx::sync_threads();
  ptx::store_global(d + thread, ptx::load_shared<uint32_t>(at) + ptx::shared_window(0) % 1024);
}

const char* shared(Bytes* result) {
  Buffer d(size_t(512));
  const char* error = run_block(shared_kernel, 128, kMostShared, d.as<uint32_t>());
  *result = d.content();
  return error;
}

template <int kR, int kS>
void add_shifts(std::vector<Atom>* atoms) {
  static char names[2][32];
  snprintf(names[0], 32, "shifted-%d-%d", kR, kS);
  snprintf(names[1], 32, "shifted-%d-%d-offset", kR, kS);
  atoms->push_back({names[0], "sm_90a", "H5: rows that begin within the pattern, base offset 0",
                    shifted<kR, kS, false>, halo<kR, kS>, true});
  atoms->push_back({names[1], "sm_90a", "H5: the same, base offset by the address",
                    shifted<kR, kS, true>, halo<kR, kS>, true});
}

}  // namespace

std::vector<Atom> product_atoms() {
  std::vector<Atom> atoms = {
      {"wgmma-128", "sm_90a", "m64n128k16, b K-major", product<BFloat16, 128, false>, plain<128>},
      {"wgmma-64", "sm_90a", "m64n64k16, b K-major", product<BFloat16, 64, false>, plain<64>},
      {"wgmma-32", "sm_90a", "m64n32k16, b K-major", product<BFloat16, 32, false>, plain<32>},
      {"wgmma-128-fp16", "sm_90a", "m64n128k16 of float16", product<Float16, 128, false>,
       plain<128>},
      {"wgmma-128-mn", "sm_90a", "m64n128k16, b N-major in two panels",
       product<BFloat16, 128, true>, plain<128>},
      {"wgmma-64-mn", "sm_90a", "m64n64k16, b N-major", product<BFloat16, 64, true>, plain<64>},
      {"wgmma-32-mn", "sm_90a", "H2: m64n32k16, b N-major in half a panel",
       product<BFloat16, 32, true>, plain<32>, true},
      {"setmaxnreg", "sm_90a", "H6: registers move between warpgroups and are used", registers},
      {"shared-memory", "sm_90a", "H6: 232,448 bytes, which begin at a multiple of 1024", shared},
  };
  add_shifts<0, 0>(&atoms);
  add_shifts<0, 1>(&atoms);
  add_shifts<0, 2>(&atoms);
  add_shifts<1, 0>(&atoms);
  add_shifts<1, 1>(&atoms);
  add_shifts<1, 2>(&atoms);
  add_shifts<2, 0>(&atoms);
  add_shifts<2, 1>(&atoms);
  add_shifts<2, 2>(&atoms);
  return atoms;
}

}  // namespace ddsm::atoms
