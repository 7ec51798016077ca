// Bulk tensor copies: what lies in shared memory after one, swizzle included.
#include <string>

#include "atoms.h"

#ifdef __CUDACC__
#include <cudaTypedefs.h>
#endif

namespace ddsm::atoms {
namespace {

constexpr uint32_t kData = 1024;  // where copies land; the mbarrier lies at 0
constexpr uint32_t kRowBytes = 128;

struct Copy {
  int32_t at[4];
  uint32_t offset_w, offset_h, rows;
};

template <bool kIm2col>
DDSM_KERNEL(32, 1)
copy_kernel(const DDSM_GRID_CONSTANT TensorMap map, const Copy copy, uint32_t* landed) {
  const uint32_t bytes = copy.rows * kRowBytes;
  if (ptx::thread_index() == 0) {
    ptx::mbarrier_init(0, 1);
    ptx::mbarrier_init_fence();
  }
  ptx::sync_threads();
  if (ptx::thread_index() == 0) {
    ptx::mbarrier_arrive_expect(0, bytes);
    if constexpr (kIm2col) {
      ptx::copy_im2col(map, kData, 0, copy.at, copy.offset_w, copy.offset_h);
    } else {
      ptx::copy_tiled(map, kData, 0, copy.at);
    }
  }
  ptx::mbarrier_wait(0, 0);
  for (uint32_t i = ptx::thread_index() * 4; i < bytes; i += 128) {
    ptx::store_global(landed + i / 4, ptx::load_shared<uint32_t>(kData + i));
  }
}

#ifdef __CUDACC__
// As csrc/cuda/conv2d_sm90.cu does it.
const char* encode(const TensorMapSpec& spec, TensorMap* map) {
  if (const char* reason = refusal(spec)) return reason;
  void* found[2] = {};
  const char* names[2] = {"cuTensorMapEncodeTiled", "cuTensorMapEncodeIm2col"};
  for (int i = 0; i < 2; ++i) {
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion(names[i], &found[i], 12000, cudaEnableDefault, &result) !=
            cudaSuccess || result != cudaDriverEntryPointSuccess) {
      return "the driver has no tensor maps";
    }
  }
  cuuint64_t size[4], strides[3];
  for (int d = 0; d < 4; ++d) size[d] = static_cast<cuuint64_t>(spec.size[d]);
  for (int d = 0; d < 3; ++d) strides[d] = static_cast<cuuint64_t>(spec.stride_bytes[d]);
  const auto step = static_cast<cuuint32_t>(spec.im2col ? spec.step : 1);
  const auto row = static_cast<cuuint32_t>(spec.row);
  const cuuint32_t steps[4] = {1, step, step, 1};
  void* const data = const_cast<void*>(spec.data);
  CUresult result;
  if (spec.im2col) {
    const int lower[2] = {int(spec.lower), int(spec.lower)};
    const int upper[2] = {int(spec.upper_w), int(spec.upper_h)};
    result = reinterpret_cast<PFN_cuTensorMapEncodeIm2col_v12000>(found[1])(
        map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, data, size, strides, lower, upper, row,
        static_cast<cuuint32_t>(spec.pixels), steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  } else {
    const cuuint32_t box[4] = {row, cuuint32_t(spec.box[0]), cuuint32_t(spec.box[1]),
                               cuuint32_t(spec.box[2])};
    result = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found[0])(
        map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, data, size, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  }
  return result == CUDA_SUCCESS ? nullptr : "the driver refuses the tensor map";
}
#else
const char* encode(const TensorMapSpec& spec, TensorMap* map) {
  *map = spec;
  return refusal(spec);
}
#endif

// Images [n, height, width] of `c` channels in rows of `pitch`, each element its own number.
struct Images {
  int64_t n, height, width, c, pitch;

  std::vector<uint16_t> content() const {
    std::vector<uint16_t> values(static_cast<size_t>(n * height * width * pitch));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(1 + i % 65521);
    return values;
  }
  TensorMapSpec map(const void* data) const {
    TensorMapSpec spec{};
    spec.data = data;
    const int64_t size[4] = {c, width, height, n};
    const int64_t strides[3] = {pitch * 2, width * pitch * 2, height * width * pitch * 2};
    for (int d = 0; d < 4; ++d) spec.size[d] = size[d];
    for (int d = 0; d < 3; ++d) spec.stride_bytes[d] = strides[d];
    spec.row = 64;
    return spec;
  }
};

const char* land(const Images& images, TensorMapSpec more, const Copy& copy, Bytes* result) {
  Buffer data(images.content()), landed(size_t(copy.rows) * kRowBytes);
  TensorMapSpec spec = images.map(data.as<void>());
  spec.im2col = more.pixels > 0;
  for (int d = 0; d < 3; ++d) spec.box[d] = more.box[d];
  spec.pixels = more.pixels;
  spec.lower = more.lower;
  spec.upper_w = more.upper_w;
  spec.upper_h = more.upper_h;
  spec.step = more.step;
  TensorMap map{};
  if (const char* error = encode(spec, &map)) return error;
  const size_t shared_bytes = kData + size_t(copy.rows) * kRowBytes;
  const auto kernel = spec.im2col ? copy_kernel<true> : copy_kernel<false>;
  const char* error = run_block(kernel, 32, shared_bytes, map, copy, landed.as<uint32_t>());
  *result = landed.content();
  return error;
}

template <int kSize, int kChannels, int kPitch, int kKernel, int kStride, int kPixels>
const char* im2col(int n, int h, int w, uint32_t r, uint32_t s, Bytes* result) {
  TensorMapSpec more{};
  more.pixels = kPixels;
  more.lower = -(kKernel / 2);
  more.upper_w = more.upper_h = kKernel / 2 - (kKernel - 1);
  more.step = kStride;
  const auto lower = static_cast<int32_t>(more.lower);
  const Copy copy{{0, w * kStride + lower, h * kStride + lower, n}, s, r, kPixels};
  return land({3, kSize, kSize + 1, kChannels, kPitch}, more, copy, result);
}

const char* tiled(const Images& images, int64_t w, int64_t h, int64_t n, const int32_t (&at)[4],
                  Bytes* result) {
  TensorMapSpec more{};
  more.box[0] = w;
  more.box[1] = h;
  more.box[2] = n;
  const auto rows = static_cast<uint32_t>(w * h * n);
  return land(images, more, {{at[0], at[1], at[2], at[3]}, 0, 0, rows}, result);
}

}  // namespace

std::vector<Atom> copy_atoms() {
  return {
      {"tiled", "sm_90a", "a tiled copy inside of the tensor",
       [](Bytes* b) { return tiled({8, 3, 3, 64, 64}, 1, 1, 8, {0, 1, 2, 0}, b); }},
      {"tiled-past-the-end", "sm_90a", "a box of 64 filters where 40 are left, channels too",
       [](Bytes* b) { return tiled({48, 3, 3, 72, 80}, 1, 1, 64, {16, 2, 1, 8}, b); }},
      {"tiled-before-the-start", "sm_90a", "a box that begins outside of the tensor",
       [](Bytes* b) { return tiled({3, 3, 3, 64, 64}, 2, 2, 2, {-8, -1, -1, -1}, b); }},
      {"tiled-43-of-48", "sm_90a", "H4: 43 channels in rows of 48",
       [](Bytes* b) { return tiled({16, 3, 3, 43, 48}, 1, 1, 16, {0, 1, 1, 0}, b); }},
      {"im2col", "sm_90a", "im2col, stride 1, first tap",
       [](Bytes* b) { return im2col<5, 64, 64, 3, 1, 64>(0, 0, 0, 0, 0, b); }},
      {"im2col-last-tap", "sm_90a", "im2col, stride 1, last tap, from within an image",
       [](Bytes* b) { return im2col<5, 64, 64, 3, 1, 64>(0, 3, 2, 2, 2, b); }},
      {"im2col-1x1", "sm_90a", "im2col, a filter of one tap, second image",
       [](Bytes* b) { return im2col<5, 64, 64, 1, 1, 64>(1, 4, 5, 0, 0, b); }},
      {"im2col-128-rows", "sm_90a", "H3: im2col, 128 rows where 90 pixels are",
       [](Bytes* b) { return im2col<5, 64, 64, 3, 1, 128>(0, 0, 0, 1, 0, b); }},
      {"im2col-stride-2-odd", "sm_90a", "H1: im2col, stride 2, 5 x 6 pixels",
       [](Bytes* b) { return im2col<5, 64, 64, 3, 2, 32>(0, 0, 0, 1, 2, b); }},
      {"im2col-stride-2-even", "sm_90a", "H1: im2col, stride 2, 6 x 7 pixels",
       [](Bytes* b) { return im2col<6, 64, 64, 3, 2, 32>(0, 1, 1, 2, 0, b); }},
      {"im2col-stride-2-first", "sm_90a", "H1: im2col, stride 2, 8 x 9 pixels, first tap",
       [](Bytes* b) { return im2col<8, 64, 64, 3, 2, 64>(0, 0, 0, 0, 0, b); }},
      {"im2col-43-of-48", "sm_90a", "H4: im2col, 43 channels in rows of 48",
       [](Bytes* b) { return im2col<5, 43, 48, 3, 1, 64>(0, 1, 3, 1, 1, b); }},
      {"im2col-last-image", "sm_90a", "H3: im2col, rows past the last image are zero",
       [](Bytes* b) { return im2col<5, 64, 64, 3, 1, 64>(2, 4, 4, 1, 1, b); }},
  };
}

}  // namespace ddsm::atoms
