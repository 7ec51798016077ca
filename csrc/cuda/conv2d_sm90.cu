// The convolution on sm_90a: tensor maps as the driver encodes them, and the launch. The emulator
// reads the maps' description itself.
#include "conv2d_sm90.cuh"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#include <cudaTypedefs.h>
#include <unistd.h>
#endif

namespace ddsm {
namespace {

#ifdef __CUDACC__

// A function of the driver, found at run time: the library links no libcuda.
template <class Function>
Function driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  // 12.0: the version that brought both functions.
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
  const bool known = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
  return known ? reinterpret_cast<Function>(found) : nullptr;
}

// Null, or why the driver did not encode the map.
const char* encode(const TensorMapSpec& spec, TensorMap* map) {
  static const auto tiled =
      driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled");
  static const auto im2col =
      driver_function<PFN_cuTensorMapEncodeIm2col_v12000>("cuTensorMapEncodeIm2col");
  if (!tiled || !im2col) return "the driver has no tensor maps; it is older than CUDA 12.0";
  const CUtensorMapDataType type =
      spec.half_floats ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  void* const data = const_cast<void*>(spec.data);
  cuuint64_t size[4], strides[3];
  for (int d = 0; d < 4; ++d) size[d] = static_cast<cuuint64_t>(spec.size[d]);
  for (int d = 0; d < 3; ++d) strides[d] = static_cast<cuuint64_t>(spec.stride_bytes[d]);
  const auto step = static_cast<cuuint32_t>(spec.im2col ? spec.step : 1);
  const auto row = static_cast<cuuint32_t>(spec.row);
  const cuuint32_t element_strides[4] = {1, step, step, 1};
  const CUtensorMapSwizzle swizzle =
      spec.row == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  CUresult result;
  if (spec.im2col) {
    const int lower[2] = {static_cast<int>(spec.lower), static_cast<int>(spec.lower)};
    const int upper[2] = {static_cast<int>(spec.upper_w), static_cast<int>(spec.upper_h)};
    result = im2col(map, type, 4, data, size, strides, lower, upper, row,
                    static_cast<cuuint32_t>(spec.pixels), element_strides,
                    CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  } else {
    const cuuint32_t box[4] = {row, static_cast<cuuint32_t>(spec.box[0]),
                               static_cast<cuuint32_t>(spec.box[1]),
                               static_cast<cuuint32_t>(spec.box[2])};
    result = tiled(map, type, 4, data, size, strides, box, element_strides,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  }
  return result == CUDA_SUCCESS ? nullptr : "the driver refuses a tensor map";
}

// Where kernels of this process say that they gave up a wait: the launch only ends with an error
// that names nothing, so this is printed at the end of the process.
class StallReport {
 public:
  StallReport() {
    void* memory = nullptr;
    // The first launch may be in somebody's capture, which must not end by this.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (cudaHostAlloc(&memory, sizeof(ptx::Stall), cudaHostAllocMapped) == cudaSuccess) {
      memset(memory, 0, sizeof(ptx::Stall));
      stall_ = static_cast<ptx::Stall*>(memory);
    } else {
      cudaGetLastError();  // it must not be reported to another call
    }
    cudaThreadExchangeStreamCaptureMode(&mode);
  }
  ~StallReport() {
    // A forked process has not that memory.
    if (!stall_ || getpid() != process_ || !stall_->found) return;
    constexpr const char* kRoles[] = {"copies, for stage", "products, for stage",
                                      "a turn, of warpgroup", "a residual, of warpgroup"};
    fprintf(stderr,
            "ddsm_ext: conv_sm90 gave up a wait after 2 s: block %u, %s %u, parity %u; "
            "DDSM_SM90A=0 does without this kernel\n",
            stall_->block, kRoles[stall_->role % 4], stall_->stage, stall_->parity);
  }
  ptx::Stall* memory() const { return stall_; }

 private:
  ptx::Stall* stall_ = nullptr;
  const pid_t process_ = getpid();
};

ptx::Stall* stall_memory() {
  static const StallReport report;
  return report.memory();
}

#else

ptx::Stall* stall_memory() { return nullptr; }

const char* encode(const TensorMapSpec& spec, TensorMap* map) {
  *map = spec;
  return refusal(spec);
}

#endif

// A map without memory is one that the kernel does not use.
const char* encode_if(const TensorMapSpec& spec, TensorMap* map) {
  return spec.data ? encode(spec, map) : nullptr;
}

}  // namespace

const char* run_conv_sm90(const ConvParams& params, const ConvGeometry& geometry, int32_t tile,
                          int32_t multiprocessors, void* stream) {
  const int64_t c_out = params.parts.columns.divisor;
  const ConvMaps maps = conv_maps(params, c_out, geometry, tile);
  HopperConvParams p{};
  for (int32_t i = 0; i < kMostSources; ++i) {
    if (const char* error = encode_if(maps.image[i], &p.image[i])) return error;
    if (const char* error = encode_if(maps.weight[i], &p.weight[i])) return error;
  }
  p.conv = params;
  p.stall = stall_memory();
  p.parts = static_cast<int32_t>(geometry.parts());
  p.phases = static_cast<int32_t>(geometry.phases());
  const EpilogueParams& e = params.epilogue;
  const GemmTile& size = kTiles[tile];
  // A box may not reach over into the next part, nor lie in every second pixel.
  p.copies_y = e.vector && p.phases == 1 && (p.parts == 1 || c_out % size.n == 0);
  p.copies_residual = e.residual && p.copies_y;
  const TensorMapSpec y = rows_map(e.y, e.y_stride, params.m, params.n, geometry, size);
  const TensorMapSpec residual =
      rows_map(e.residual, e.residual_stride, params.m, params.n, geometry, size);
  if (p.copies_y) {
    if (const char* error = encode(y, &p.y)) return error;
  }
  if (p.copies_residual) {
    if (const char* error = encode(residual, &p.residual)) return error;
  }
  p.corner = static_cast<int32_t>(geometry.lower());
  const bool half_floats = geometry.math == Math::kFloat16;
  if (is_activated(geometry.kind)) {
    const auto launch_conv = half_floats ? launch_conv_sm90_activated<Float16>
                                         : launch_conv_sm90_activated<BFloat16>;
    return launch_conv(p, tile, geometry.geglu(), multiprocessors, stream);
  }
  const auto launch_conv = half_floats ? launch_conv_sm90<Float16> : launch_conv_sm90<BFloat16>;
  return launch_conv(p, tile, geometry.gradient(), multiprocessors, stream);
}

}  // namespace ddsm
