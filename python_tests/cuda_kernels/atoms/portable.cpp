// What the sm_80 path is made of: mma, ldmatrix, cp.async, shuffles, rounding to tf32.
#include "atoms.h"

namespace ddsm::atoms {
namespace {

template <class T>
DDSM_KERNEL(32, 1)
multiply_kernel(const uint32_t* a, const uint32_t* b, float* d) {
  const unsigned lane = ptx::thread_index();
  uint32_t fragment[4];
  float sums[4];
  for (int i = 0; i < 4; ++i) {
    fragment[i] = ptx::load_global(a + lane * 4 + i);
    sums[i] = static_cast<float>(lane * 4 + i);
  }
  ptx::mma(sums, fragment, ptx::load_global(b + lane * 2), ptx::load_global(b + lane * 2 + 1), T{});
  for (int i = 0; i < 4; ++i) ptx::store_global(d + lane * 4 + i, sums[i]);
}

template <bool kTransposed>
DDSM_KERNEL(32, 1)
ldmatrix_kernel(uint32_t* d) {
  const unsigned lane = ptx::thread_index();
  for (unsigned i = 0; i < 4; ++i) {
    const uint32_t word = lane * 4 + i;  // two elements, each its own number
    ptx::store_shared(word * 4, word * 2 | (word * 2 + 1) << 16);
  }
  ptx::sync_threads();
  uint32_t fragment[4];
  if constexpr (kTransposed) ptx::ldmatrix_trans(fragment, lane * 16);
  else ptx::ldmatrix(fragment, lane * 16);
  for (int i = 0; i < 4; ++i) ptx::store_global(d + lane * 4 + i, fragment[i]);
}

// Thread i copies i of 16 bytes, 0 to 16.
DDSM_KERNEL(32, 1)
cp_async_kernel(const uint8_t* source, uint32_t* d) {
  const unsigned lane = ptx::thread_index();
  for (unsigned i = 0; i < 4; ++i) ptx::store_shared(lane * 16 + i * 4, ~0u);
  ptx::sync_threads();
  ptx::cp_async(lane * 16, source + lane * 16, static_cast<int>(lane < 8 ? 2 * lane : 16));
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  ptx::sync_threads();
  for (unsigned i = 0; i < 4; ++i) {
    ptx::store_global(d + lane * 4 + i, ptx::load_shared<uint32_t>(lane * 16 + i * 4));
  }
}

DDSM_KERNEL(32, 1)
shuffle_kernel(float* d) {
  const unsigned lane = ptx::thread_index();
  ptx::store_global(d + lane, ptx::shuffle(static_cast<float>(lane), (lane * 7 + 3) % 32));
}

DDSM_KERNEL(32, 1)
tf32_kernel(const uint32_t* x, uint32_t* d) {
  const unsigned lane = ptx::thread_index();
  ptx::store_global(d + lane, ptx::to_tf32(ptx::load_global(x + lane)));
}

template <class T>
uint32_t pair(uint32_t index, uint32_t seed) {
  return bits_of(small_number(2 * index, seed), T{}) |
         uint32_t(bits_of(small_number(2 * index + 1, seed), T{})) << 16;
}

template <class T>
const char* multiply(Bytes* result) {
  std::vector<uint32_t> a(128), b(64);
  for (uint32_t i = 0; i < 128; ++i) a[i] = pair<T>(i, 1);
  for (uint32_t i = 0; i < 64; ++i) b[i] = pair<T>(i, 2);
  Buffer of_a(a), of_b(b), d(size_t(512));
  const char* error = run_block(multiply_kernel<T>, 32, 0, of_a.as<uint32_t>(),
                                of_b.as<uint32_t>(), d.as<float>());
  *result = d.content();
  return error;
}

template <>
const char* multiply<float>(Bytes* result) {
  std::vector<uint32_t> a(128), b(64);
  // Bits below tf32's are set and must not count.
  for (uint32_t i = 0; i < 128; ++i) a[i] = uint32_t(bits_of(small_number(i, 1), BFloat16{})) << 16;
  for (uint32_t i = 0; i < 64; ++i) b[i] = uint32_t(bits_of(small_number(i, 2), BFloat16{})) << 16;
  Buffer of_a(a), of_b(b), d(size_t(512));
  const char* error = run_block(multiply_kernel<float>, 32, 0, of_a.as<uint32_t>(),
                                of_b.as<uint32_t>(), d.as<float>());
  *result = d.content();
  return error;
}

template <bool kTransposed>
const char* ldmatrix(Bytes* result) {
  Buffer d(size_t(512));
  const char* error = run_block(ldmatrix_kernel<kTransposed>, 32, 512, d.as<uint32_t>());
  *result = d.content();
  return error;
}

const char* cp_async(Bytes* result) {
  Bytes content(512);
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<uint8_t>(1 + i % 250);
  Buffer source(content), d(size_t(512));
  const char* error = run_block(cp_async_kernel, 32, 512, source.as<const uint8_t>(),
                                d.as<uint32_t>());
  *result = d.content();
  return error;
}

const char* shuffle(Bytes* result) {
  Buffer d(size_t(128));
  const char* error = run_block(shuffle_kernel, 32, 0, d.as<float>());
  *result = d.content();
  return error;
}

const char* to_tf32(Bytes* result) {
  std::vector<uint32_t> x(32);
  for (uint32_t i = 0; i < 32; ++i) x[i] = 0x3F800000u + i * 0x987u + (i & 1 ? 0x80001000u : 0);
  Buffer of_x(x), d(size_t(128));
  const char* error = run_block(tf32_kernel, 32, 0, of_x.as<uint32_t>(), d.as<uint32_t>());
  *result = d.content();
  return error;
}

}  // namespace

std::vector<Atom> portable_atoms() {
  return {
      {"mma-bf16", "sm_80", "mma.sync m16n8k16 of bfloat16", multiply<BFloat16>},
      {"mma-fp16", "sm_80", "mma.sync m16n8k16 of float16", multiply<Float16>},
      {"mma-tf32", "sm_80", "mma.sync m16n8k8 of tf32", multiply<float>},
      {"ldmatrix", "sm_80", "ldmatrix x4", ldmatrix<false>},
      {"ldmatrix-trans", "sm_80", "ldmatrix x4 trans", ldmatrix<true>},
      {"cp-async", "sm_80", "cp.async of 0, 2 ... 16 bytes, the rest zero", cp_async},
      {"shuffle", "sm_80", "shfl.sync by index", shuffle},
      {"to-tf32", "sm_80", "cvt.rna.tf32", to_tf32},
  };
}

}  // namespace ddsm::atoms
