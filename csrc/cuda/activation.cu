// sliced_activation on CUDA: from the arguments to parameters and launches.
#include "ddsm/activation_cuda.h"

#include "activation_kernels.cuh"
#include "launch.cuh"
#include "tile_choice.h"

namespace ddsm {
namespace {

int64_t columns_of_z(const ActivationCudaArgs& args) {
  return args.activation == Activation::kGeglu ? 2 * args.columns : args.columns;
}

// True if all rows can be read and written as packs of 16 bytes.
bool takes_packs(const ActivationCudaArgs& args, int64_t pack) {
  const int64_t rows = args.images * args.rows;
  const auto fits = [&](const void* data, int64_t count, int64_t stride) {
    return !data || (reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
                     (count == 1 || stride % pack == 0));  // that of one row says nothing
  };
  return args.columns % pack == 0 && fits(args.z, rows, args.z_stride) &&
         fits(args.gate, args.images, args.gate_stride) &&
         fits(args.residual, rows, args.residual_stride) &&
         fits(args.grad_y, rows, args.grad_y_stride) && fits(args.y, rows, args.columns) &&
         fits(args.grad_z, rows, columns_of_z(args));
}

int64_t pack_of(const ActivationCudaArgs& args) {
  const int64_t pack = args.dtype == DType::kFloat32 ? 4 : 8;
  return takes_packs(args, pack) ? pack : 1;
}

// How the backward pass goes over an image.
struct Strips {
  int64_t block_packs = 1, rows = 0, count = 0, tiles = 0;

  explicit Strips(const ActivationCudaArgs& args) {
    const int64_t packs = blocks_of(args.columns, pack_of(args));
    while (block_packs < kMostGradPacks && block_packs < packs) block_packs *= 2;
    rows = kGradRows * kActivationThreads / block_packs;
    count = blocks_of(args.rows, rows);
    tiles = blocks_of(packs, block_packs);
  }
};

// Null, or why the work of a launch cannot be counted.
const char* refusal(const ActivationCudaArgs& args) {
  const bool fits = args.images * args.rows * args.columns / pack_of(args) <= kMostRows &&
                    columns_of_z(args) <= kMostRows && args.images <= kMostRows;
  return fits ? nullptr : "more than 2^31 packs of 16 bytes";
}

template <class T>
ActivationParams<T> params_of(const ActivationCudaArgs& args) {
  const Strips strips(args);
  ActivationParams<T> p{};
  p.z = static_cast<const T*>(args.z);
  p.gate = static_cast<const T*>(args.gate);
  p.residual = static_cast<const T*>(args.residual);
  p.grad_y = static_cast<const T*>(args.grad_y);
  p.y = static_cast<T*>(args.y);
  p.grad_z = static_cast<T*>(args.grad_z);
  p.grad_gate = args.grad_gate;
  p.partial = static_cast<float*>(args.workspace);
  p.z_stride = args.z_stride;
  p.gate_stride = args.gate_stride;
  p.residual_stride = args.residual_stride;
  p.grad_y_stride = args.grad_y_stride;
  p.activation = args.activation;
  p.images = static_cast<int32_t>(args.images);
  p.columns = static_cast<int32_t>(args.columns);
  p.packs = Divider(blocks_of(args.columns, pack_of(args)));
  p.rows = Divider(args.rows);
  p.block_packs = static_cast<int32_t>(strips.block_packs);
  p.strip_rows = static_cast<int32_t>(strips.rows);
  p.tiles = Divider(strips.tiles);
  p.strips = Divider(strips.count);
  return p;
}

template <class T, int V, bool kGeglu>
const char* forward(const ActivationCudaArgs& args, void* stream) {
  const int64_t items = args.images * args.rows * args.columns / V;
  const LaunchShape shape{blocks_of(items, kActivationThreads), 1, kActivationThreads, 0};
  return launch("activation", activation_kernel<T, V, kGeglu>, shape, stream, params_of<T>(args));
}

template <class T, int V, bool kGeglu>
const char* backward(const ActivationCudaArgs& args, void* stream) {
  const Strips strips(args);
  const auto params = params_of<T>(args);
  const int64_t shared = args.grad_gate ? kActivationThreads * V * 4 : 0;
  const LaunchShape shape{args.images * strips.count * strips.tiles, 1, kActivationThreads, shared};
  const char* error =
      launch("activation_grad", activation_grad_kernel<T, V, kGeglu>, shape, stream, params);
  if (error || !args.grad_gate) return error;
  const LaunchShape sums{blocks_of(args.images * args.columns, kActivationThreads), 1,
                         kActivationThreads, 0};
  return launch("activation_grad_gate", activation_grad_gate_kernel<T>, sums, stream, params);
}

// Calls run(element, pack, whether it is GEGLU).
template <class Run>
const char* with_types(const ActivationCudaArgs& args, const Run& run) {
  if (const char* reason = refusal(args)) return reason;
  const auto of_pack = [&](auto element, auto pack) {
    return args.activation == Activation::kGeglu ? run(element, pack, std::true_type{})
                                                 : run(element, pack, std::false_type{});
  };
  return with_number(args.dtype, [&](auto element) {
    constexpr int kPack = 16 / sizeof element;
    return pack_of(args) == 1 ? of_pack(element, std::integral_constant<int, 1>{})
                              : of_pack(element, std::integral_constant<int, kPack>{});
  });
}

bool is_empty(const ActivationCudaArgs& args) {
  return args.images == 0 || args.rows == 0 || args.columns == 0;
}

}  // namespace

int64_t activation_backward_cuda_workspace_bytes(const ActivationCudaArgs& args) {
  if (!args.grad_gate || is_empty(args)) return 0;
  return 4 * args.images * Strips(args).count * args.columns;
}

const char* activation_cuda(const ActivationCudaArgs& args, void* stream) {
  if (is_empty(args)) return nullptr;
  return with_types(args, [&](auto element, auto pack, auto geglu) {
    return forward<decltype(element), pack, geglu>(args, stream);
  });
}

const char* activation_backward_cuda(const ActivationCudaArgs& args, void* stream) {
  if (is_empty(args)) {
    const int64_t bytes = args.grad_gate ? 4 * args.images * args.columns : 0;
    return bytes > 0 ? clear(args.grad_gate, static_cast<size_t>(bytes), stream) : nullptr;
  }
  return with_types(args, [&](auto element, auto pack, auto geglu) {
    return backward<decltype(element), pack, geglu>(args, stream);
  });
}

}  // namespace ddsm
