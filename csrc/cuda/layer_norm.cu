// sliced_layer_norm on CUDA, forward and backward. No atomics: every sum has one order.
#include "ddsm/layer_norm_cuda.h"

#include <type_traits>

#include "launch.cuh"
#include "layer_norm_kernels.cuh"
#include "tile_choice.h"

namespace ddsm {
namespace {

int64_t parts_of(const LayerNormArgs& args) { return blocks_of(args.rows, kPartRows); }

// True if all rows can be read and written as packs of 16 bytes.
bool takes_packs(const LayerNormArgs& args, int64_t pack, bool backward) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  // The stride of a dimension of one says nothing.
  const auto apart = [&](int64_t run_stride, int64_t row_stride) {
    return (args.images * args.rows == args.run || run_stride % pack == 0) &&
           (args.run == 1 || row_stride % pack == 0);
  };
  const bool taken = args.channels % pack == 0 && aligned(args.x) &&
                     apart(args.x_run_stride, args.x_row_stride) && aligned(args.weight) &&
                     aligned(args.bias) && aligned(args.scale) && aligned(args.shift) &&
                     (args.images == 1 || args.modulation_stride % pack == 0);
  if (!backward) return taken && aligned(args.y);
  return taken && aligned(args.grad_y) && aligned(args.grad_x) &&
         apart(args.grad_y_run_stride, args.grad_y_row_stride);
}

template <class T>
LayerNormParams<T> params_of(const LayerNormArgs& args, int64_t pack, bool backward) {
  LayerNormParams<T> p{};
  p.x = static_cast<const T*>(args.x);
  p.grad_y = static_cast<const T*>(args.grad_y);
  p.out = static_cast<T*>(backward ? args.grad_x : args.y);
  p.x_run_stride = args.x_run_stride;
  p.x_row_stride = args.x_row_stride;
  p.grad_run_stride = args.grad_y_run_stride;
  p.grad_row_stride = args.grad_y_row_stride;
  p.weight = args.weight;
  p.bias = args.bias;
  p.scale = static_cast<const T*>(args.scale);
  p.shift = static_cast<const T*>(args.shift);
  p.modulation_stride = args.modulation_stride;
  p.mean = static_cast<float*>(args.mean);
  p.rstd = static_cast<float*>(args.rstd);
  p.sums = static_cast<ChannelSums*>(args.scratch);
  p.grad_weight = args.grad_weight;
  p.grad_bias = args.grad_bias;
  p.grad_scale = static_cast<T*>(args.grad_scale);
  p.grad_shift = static_cast<T*>(args.grad_shift);
  p.eps = args.eps;
  p.inverse_c = static_cast<float>(1.0 / static_cast<double>(args.channels));
  p.c = static_cast<int32_t>(args.channels);
  p.images = static_cast<int32_t>(args.images);
  p.all_rows = static_cast<int32_t>(args.images * args.rows);
  const int64_t packs = args.channels / pack;
  p.lanes = 1;
  while (p.lanes < 32 && p.lanes < packs) p.lanes *= 2;
  p.sum_items = static_cast<int32_t>(args.images * parts_of(args) * packs);
  p.rows = Divider(args.rows);
  p.run = Divider(args.run);
  p.parts = Divider(parts_of(args));
  p.packs = Divider(packs);
  p.wide_params = args.param_dtype == DType::kFloat32;
  return p;
}

// A row of so many lanes' packs each.
template <class T>
LaunchShape row_blocks(const LayerNormParams<T>& p, bool overlaps) {
  return {blocks_of(p.all_rows, kLayerNormThreads / p.lanes), 1, kLayerNormThreads, 0, overlaps};
}

// Calls run(packs that a lane holds) with the least that are enough; 0: it holds none.
template <class T, int V, class Run>
const char* with_held(const LayerNormParams<T>& p, const Run& run) {
  if constexpr (V > 1) {
    const int64_t packs = blocks_of(p.c / V, p.lanes);
    if (packs <= 2) return run(std::integral_constant<int, 2>{});
    if (packs <= 4) return run(std::integral_constant<int, 4>{});
    if (packs <= 8) return run(std::integral_constant<int, 8>{});
  }
  return run(std::integral_constant<int, 0>{});
}

template <class T, int V>
const char* forward(const LayerNormArgs& args, bool overlaps, void* stream) {
  const auto p = params_of<T>(args, V, false);
  return with_held<T, V>(p, [&](auto held) {
    return launch("layer_norm", layer_norm_kernel<T, V, held>, row_blocks(p, overlaps), stream, p);
  });
}

template <class T, int V>
const char* backward(const LayerNormArgs& args, void* stream) {
  const auto p = params_of<T>(args, V, true);
  const char* error = with_held<T, V>(p, [&](auto held) {
    return launch("layer_norm_grad", layer_norm_grad_kernel<T, V, held>, row_blocks(p, false),
                  stream, p);
  });
  if (error || !args.wants_sums()) return error;
  LaunchShape shape{blocks_of(p.sum_items, kLayerNormSumThreads), 1, kLayerNormSumThreads, 0};
  error = launch("layer_norm_grad_sums", layer_norm_grad_sums_kernel<T, V>, shape, stream, p);
  shape.blocks = blocks_of(p.c, kSumChannels);
  shape.shared_bytes = kLayerNormSumThreads * static_cast<int64_t>(sizeof(ChannelSums));
  if (!error && (args.grad_weight || args.grad_bias)) {
    error = launch("layer_norm_grad_params", layer_norm_grad_params_kernel<T>, shape, stream, p);
  }
  shape.blocks *= args.images;
  if (!error && (args.grad_scale || args.grad_shift)) {
    error = launch("layer_norm_grad_modulation", layer_norm_grad_modulation_kernel<T>, shape,
                   stream, p);
  }
  return error;
}

// Null, or why rows, or threads that sum over some of them, cannot be counted.
const char* refusal(const LayerNormArgs& args) {
  const bool fits = args.channels <= kMostRows && args.images * args.rows <= kMostRows &&
                    args.images * parts_of(args) * args.channels <= kMostRows;
  return fits ? nullptr : "more than 2^31 rows, or channels of 32 rows each";
}

// Calls run(element, pack): a number of the rows' type and how many channels a thread takes.
template <class Run>
const char* with_types(const LayerNormArgs& args, bool backward, const Run& run) {
  if (args.images == 0 || args.rows == 0) return nullptr;
  if (const char* reason = refusal(args)) return reason;
  return with_number(args.dtype, [&](auto element) {
    constexpr int kPack = 16 / sizeof element;
    return takes_packs(args, kPack, backward) ? run(element, std::integral_constant<int, kPack>{})
                                              : run(element, std::integral_constant<int, 1>{});
  });
}

}  // namespace

int64_t layer_norm_cuda_scratch_bytes(const LayerNormArgs& args) {
  if (!args.wants_sums()) return 0;
  return args.images * parts_of(args) * args.channels * static_cast<int64_t>(sizeof(ChannelSums));
}

const char* layer_norm_forward_cuda(const LayerNormArgs& args, bool overlaps, void* stream) {
  return with_types(args, false, [&](auto element, auto pack) {
    return forward<decltype(element), pack>(args, overlaps, stream);
  });
}

const char* layer_norm_backward_cuda(const LayerNormArgs& args, void* stream) {
  if (args.rows == 0) {
    const auto bytes = static_cast<size_t>(args.images * args.channels * element_bytes(args.dtype));
    const char* error = args.grad_scale ? clear(args.grad_scale, bytes, stream) : nullptr;
    if (!error && args.grad_shift) error = clear(args.grad_shift, bytes, stream);
    return error;
  }
  return with_types(args, true, [&](auto element, auto pack) {
    return backward<decltype(element), pack>(args, stream);
  });
}

}  // namespace ddsm
