// Single instructions of sm_90a and pure functions of that path, for test_ptx_sm90.py.
#include "../../csrc/cuda/matrix_descriptor.h"
#include "../../csrc/cuda/ptx_sm90.cuh"

namespace {

using namespace ddsm;

constexpr uint32_t kData = 1024;  // where copies land; the mbarrier lies at 0

// Runs one bulk copy of `rows` rows and gives back shared memory as it lies.
template <class Copy>
const char* land(int rows, uint16_t* landed, Copy copy) {
  const uint32_t bytes = static_cast<uint32_t>(rows) * kSwizzleBytes;
  return simt::run({}, 32, kData + bytes, [&] {
    if (ptx::thread_index() == 0) ptx::mbarrier_init(0, 1);
    ptx::sync_threads();
    if (ptx::thread_index() == 0) {
      ptx::mbarrier_arrive_expect(0, bytes);
      copy();
    }
    ptx::mbarrier_wait(0, 0);
    for (uint32_t i = ptx::thread_index(); i < bytes / 2; i += 32) {
      landed[i] = ptx::load_shared<uint16_t>(kData + i * 2);
    }
  });
}

// d (+)= a b from an image of shared memory: a's tile at 0, b's at `b_begin`.
template <class T, int kN, bool kNMajor>
const char* multiply_tiles(const uint16_t* memory, int count, uint64_t a, uint64_t b, bool add,
                           float* d) {
  return simt::run({}, 128, static_cast<size_t>(count) * 2, [&] {
    for (int i = static_cast<int>(ptx::thread_index()); i < count; i += 128) {
      ptx::store_shared(static_cast<uint32_t>(i) * 2, memory[i]);
    }
    ptx::sync_threads();
    float sums[kN / 2];
    for (int i = 0; i < kN / 2; ++i) sums[i] = d[ptx::thread_index() * (kN / 2) + i];
    ptx::warpgroup_fence();
    ptx::wgmma<kN, kNMajor>(sums, a, b, add, T{});
    ptx::warpgroup_commit();
    ptx::warpgroup_wait<0>();
    for (int i = 0; i < kN / 2; ++i) d[ptx::thread_index() * (kN / 2) + i] = sums[i];
  });
}

}  // namespace

extern "C" {

uint64_t k_major_descriptor(uint32_t start) { return ddsm::k_major_descriptor(start); }
uint64_t mn_major_descriptor(uint32_t start, uint32_t panel_bytes) {
  return ddsm::mn_major_descriptor(start, panel_bytes);
}
const char* tensor_map_refusal(const TensorMapSpec* map) { return refusal(*map); }
int64_t tensor_map_bytes() { return sizeof(TensorMapSpec); }

const char* land_im2col(const TensorMapSpec* map, const int32_t* at, int offset_w, int offset_h,
                        uint16_t* landed) {
  return land(static_cast<int>(map->pixels), landed, [&] {
    ptx::copy_im2col(*map, kData, 0, {at[0], at[1], at[2], at[3]}, offset_w, offset_h);
  });
}
const char* land_tiled(const TensorMapSpec* map, const int32_t* at, uint16_t* landed) {
  return land(static_cast<int>(map->box[0] * map->box[1] * map->box[2]), landed,
              [&] { ptx::copy_tiled(*map, kData, 0, {at[0], at[1], at[2], at[3]}); });
}

const char* multiply_tiles_bf16(const uint16_t* memory, int count, uint64_t a, uint64_t b, int add,
                                int n_major, float* d) {
  return n_major ? multiply_tiles<BFloat16, 128, true>(memory, count, a, b, add != 0, d)
                 : multiply_tiles<BFloat16, 128, false>(memory, count, a, b, add != 0, d);
}
const char* multiply_tiles_fp16(const uint16_t* memory, int count, uint64_t a, uint64_t b, int add,
                                int n_major, float* d) {
  return n_major ? multiply_tiles<Float16, 128, true>(memory, count, a, b, add != 0, d)
                 : multiply_tiles<Float16, 128, false>(memory, count, a, b, add != 0, d);
}

}  // extern "C"
