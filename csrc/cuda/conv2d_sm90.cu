// The convolution on sm_90a: tensor maps as the driver encodes them, and the launch. The emulator
// reads the maps' description itself.
#include "conv2d_sm90.cuh"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#include <cudaTypedefs.h>
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
  CUresult result;
  if (spec.im2col) {
    const int lower[2] = {static_cast<int>(spec.lower), static_cast<int>(spec.lower)};
    const int upper[2] = {static_cast<int>(spec.upper), static_cast<int>(spec.upper)};
    result = im2col(map, type, 4, data, size, strides, lower, upper, row,
                    static_cast<cuuint32_t>(spec.pixels), element_strides,
                    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  } else {
    const cuuint32_t box[4] = {row, static_cast<cuuint32_t>(spec.box[0]),
                               static_cast<cuuint32_t>(spec.box[1]),
                               static_cast<cuuint32_t>(spec.box[2])};
    result = tiled(map, type, 4, data, size, strides, box, element_strides,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  }
  return result == CUDA_SUCCESS ? nullptr : "the driver refuses a tensor map";
}

#else

const char* encode(const TensorMapSpec& spec, TensorMap* map) {
  *map = spec;
  return refusal(spec);
}

#endif

}  // namespace

const char* run_conv_sm90(const ConvParams& params, const ConvGeometry& geometry, int32_t tile,
                          int32_t multiprocessors, void* stream) {
  const ConvMaps maps =
      conv_maps(params.source, params.source_count, params.weight, params.n, geometry, tile);
  HopperConvParams p{};
  for (int32_t i = 0; i < params.source_count; ++i) {
    if (const char* error = encode(maps.image[i], &p.image[i])) return error;
    if (const char* error = encode(maps.weight[i], &p.weight[i])) return error;
  }
  p.conv = params;
  p.corner = static_cast<int32_t>(geometry.lower());
  const auto launch_conv = geometry.math == Math::kFloat16 ? launch_conv_sm90<Float16>
                                                           : launch_conv_sm90<BFloat16>;
  return launch_conv(p, tile, geometry.gradient, multiprocessors, stream);
}

}  // namespace ddsm
