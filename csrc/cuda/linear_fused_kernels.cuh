// The kernels of sliced_linear_fused.
//
//   linear_rows   few rows of x: a warp's lanes share the features of some outputs, whose weights
//                 pass through registers once; all of float32's precision
//   linear_tile   many rows: tiles of outputs on tensor cores, or FMA units where full precision is
//                 wanted
#pragma once

#include "conv2d_loaders.cuh"
#include "launch.cuh"

namespace ddsm {

struct LinearPart {
  const void *weight, *bias;
  int32_t out_stride, in_stride, c_out, column;
  int32_t first_block;  // of the launch that computes the part's outputs
  bool vector;          // rows of the weight are adjacent and start at multiples of 16 bytes
};

constexpr int kMostLinearParts = 64;

// Lies in the 4 KB that all devices take as parameters.
struct LinearParams {
  const void* x;
  const void* shift;  // null: zero
  void* y;
  int64_t x_stride, shift_stride, y_stride;
  int32_t rows, c, part_count;
  bool x_vector, y_vector;  // rows start at multiples of 16 bytes
  bool silu, overlaps;
  LinearPart parts[kMostLinearParts];
};
static_assert(sizeof(LinearParams) <= 4096);

constexpr int kLinearThreads = 128, kLinearWarps = kLinearThreads / 32;
// Rows of x that a block of linear_rows serves.
constexpr int kLinearImages = 8;

// The part that `block` computes outputs of; the same for all threads.
DDSM_DEVICE int part_of_block(const LinearParams& p, int32_t block) {
  int low = 0, high = p.part_count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (p.parts[middle].first_block <= block) low = middle;
    else high = middle;
  }
  return low;
}

DDSM_DEVICE float linear_result(const LinearParams& p, float sum) {
  if (!p.silu) return sum;
  constexpr float kLog2E = 1.4426950408889634f;
  return sum / (1.0f + ptx::exp2(-sum * kLog2E));
}

template <class W>
DDSM_DEVICE float linear_bias(const LinearPart& part, int32_t output) {
  if (!part.bias) return 0.0f;
  return to_float(ptx::load_global(static_cast<const W*>(part.bias) + output));
}

template <class T>
DDSM_DEVICE float linear_shift(const LinearParams& p, int32_t row, int32_t output) {
  if (!p.shift) return 0.0f;
  const T* shift = static_cast<const T*>(p.shift) + row * p.shift_stride;
  return to_float(ptx::load_global(shift + output));
}

// Asks for weights before the kernel before this one has ended: that one does not write them.
template <class W>
DDSM_DEVICE void prefetch_weights(const LinearParams& p, const LinearPart& part, int32_t first,
                                  int outputs) {
#ifdef __CUDACC__
  if (!p.overlaps || part.in_stride != 1) return;
  const int line = 128 / sizeof(W), lines = (p.c + line - 1) / line;
  for (int item = ptx::thread_index(); item < outputs * lines; item += kLinearThreads) {
    const int32_t output = first + item / lines;
    if (output >= part.c_out) return;
    const W* address = static_cast<const W*>(part.weight) + int64_t(output) * part.out_stride +
                       item % lines * line;
    asm volatile("prefetch.global.L2 [%0];\n" ::"l"(__cvta_generic_to_global(address)));
  }
#endif
}

// `count` of V numbers as floats, the rest zero.
template <class T, int V>
DDSM_DEVICE void load_floats(float (&out)[V], const T* source, int64_t stride, int count,
                             bool vector) {
  if (vector && count >= V) {
    constexpr int kPack = 16 / sizeof(T);
    static_assert(V % kPack == 0);
#pragma unroll
    for (int i = 0; i < V; i += kPack) {
      const auto pack = ptx::load_global(reinterpret_cast<const Pack<T, kPack>*>(source + i));
#pragma unroll
      for (int j = 0; j < kPack; ++j) out[i + j] = to_float(pack.lane[j]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    out[i] = i < count ? to_float(ptx::load_global(source + i * stride)) : 0.0f;
  }
}

// Sums kCount values over the lanes of a warp, always in the same order; lane i is left with the
// sum of value i / (32 / kCount).
template <int kCount>
DDSM_DEVICE float sum_over_lanes(float (&value)[kCount]) {
  const int lane = ptx::thread_index() % 32;
  int width = kCount;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    if (width > 1) {
      width /= 2;
      const bool upper = lane & distance;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        if (i >= width) break;
        const float kept = upper ? value[width + i] : value[i];
        const float given = upper ? value[i] : value[width + i];
        value[i] = kept + ptx::shuffle(given, lane ^ distance);
      }
    } else {
      value[0] += ptx::shuffle(value[0], lane ^ distance);
    }
  }
  return value[0];
}

// Block: kOutputs outputs for each warp, kImages rows of x.
template <class T, class W, int kImages, int kOutputs>
DDSM_KERNEL(kLinearThreads, 4)
linear_rows_kernel(const LinearParams p) {
  constexpr int V = 16 / sizeof(T), kCount = kImages * kOutputs, kBlock = kLinearWarps * kOutputs;
  const auto block = static_cast<int32_t>(ptx::block_index());
  const LinearPart& part = p.parts[part_of_block(p, block)];
  const int32_t first = (block - part.first_block) * kBlock;
  prefetch_weights<W>(p, part, first, kBlock);
  ptx::wait_for_kernel_before();
  ptx::allow_kernel_after();
  const int lane = ptx::thread_index() % 32;
  const int32_t output0 = first + static_cast<int32_t>(ptx::thread_index()) / 32 * kOutputs;
  const int32_t image0 = static_cast<int32_t>(ptx::block_index_y()) * kImages;
  float sums[kCount] = {};
#pragma unroll 2
  for (int32_t k = lane * V; k < p.c; k += 32 * V) {
    float weight[kOutputs][V];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const int64_t offset = int64_t(output0 + o) * part.out_stride + int64_t(k) * part.in_stride;
      load_floats<W, V>(weight[o], static_cast<const W*>(part.weight) + offset, part.in_stride,
                        output0 + o < part.c_out ? p.c - k : 0, part.vector);
    }
#pragma unroll
    for (int i = 0; i < kImages; ++i) {
      float x[V];
      load_floats<T, V>(x, static_cast<const T*>(p.x) + (image0 + i) * p.x_stride + k, 1,
                        image0 + i < p.rows ? p.c - k : 0, p.x_vector);
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
        for (int j = 0; j < V; ++j) sums[o * kImages + i] += x[j] * weight[o][j];
      }
    }
  }
  const float sum = sum_over_lanes(sums);
  constexpr int kLanes = 32 / kCount;  // that hold the same sum
  const int32_t output = output0 + lane / kLanes / kImages;
  const int32_t image = image0 + lane / kLanes % kImages;
  if (lane % kLanes != 0 || output >= part.c_out || image >= p.rows) return;
  const float added = linear_bias<W>(part, output) + linear_shift<T>(p, image, output);
  T rounded;
  from_float(linear_result(p, sum + added), &rounded);
  ptx::store_global(static_cast<T*>(p.y) + image * p.y_stride + part.column + output, rounded);
}

// Loads A (rows of x) and B (rows of a weight).
template <class Tile, class W, bool kAligned>
struct LinearLoader {
  using A = typename Tile::A;
  using B = typename Tile::B;
  using T = typename Tile::Element;

  const LinearParams& p;
  const LinearPart& part;
  WeightView weight;
  int32_t row0, output0;

  DDSM_DEVICE void load(uint32_t stage, int32_t step) {
#pragma unroll
    for (int i = 0; i < A::kLines * A::kChunks / Tile::kThreads; ++i) {
      const int item = ptx::thread_index() + i * Tile::kThreads;
      const int line = item / A::kChunks, chunk = item % A::kChunks;
      const int32_t row = row0 + line, k = step * A::kStep + chunk * A::kVector;
      const uint32_t address = stage + A::chunk_address(line, chunk);
      const int64_t offset = row * p.x_stride + k;
      const int count = row < p.rows ? p.c - k : 0;
      if (kAligned || p.x_vector) load_vector<T>(address, p.x, offset, count);
      else load_elements<T, T>(address, p.x, offset, 1, count);
    }
#pragma unroll
    for (int i = 0; i < B::kLines * B::kChunks / Tile::kThreads; ++i) {
      const int item = ptx::thread_index() + i * Tile::kThreads;
      const int line = item / B::kChunks, chunk = item % B::kChunks;
      const int32_t output = output0 + line, k = step * B::kStep + chunk * B::kVector;
      load_weights<T, kAligned>(stage + A::kBytes + B::chunk_address(line, chunk), weight,
                                output * weight.out_stride + k * weight.in_stride,
                                output < part.c_out ? p.c - k : 0);
    }
  }
};

// Block: a tile of one part's outputs.
template <class Tile, class W, bool kAligned>
DDSM_KERNEL(Tile::kThreads, Tile::kResident)
linear_tile_kernel(const LinearParams p) {
  using T = typename Tile::Element;
  static_assert(Tile::kThreads == kLinearThreads);
  const auto block = static_cast<int32_t>(ptx::block_index());
  const LinearPart& part = p.parts[part_of_block(p, block)];
  const int32_t output0 = (block - part.first_block) * Tile::kN;
  const int32_t row0 = static_cast<int32_t>(ptx::block_index_y()) * Tile::kM;
  prefetch_weights<W>(p, part, output0, Tile::kN);
  ptx::wait_for_kernel_before();
  ptx::allow_kernel_after();
  const WeightView weight{const_cast<void*>(part.weight), part.out_stride, part.in_stride, 0, 0,
                          part.vector, sizeof(W) > sizeof(T)};
  LinearLoader<Tile, W, kAligned> loader{p, part, weight, row0, output0};
  Tile tile;
  run_pipeline(tile, loader, 0, (p.c + Tile::A::kStep - 1) / Tile::A::kStep);
  tile.store_sums();
  ptx::sync_threads();

  constexpr int V = 16 / sizeof(T), kPerRow = Tile::kN / V;
  const int column = ptx::thread_index() % kPerRow * V;
  const int32_t output = output0 + column;
  if (output >= part.c_out) return;
  float bias[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    bias[i] = output + i < part.c_out ? linear_bias<W>(part, output + i) : 0.0f;
  }
  for (int line = ptx::thread_index() / kPerRow; line < Tile::kM;
       line += Tile::kThreads / kPerRow) {
    if (row0 + line >= p.rows) break;
    Pack<T, V> out;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float sum = ptx::load_shared<float>(Tile::out_address(line, column + i)) + bias[i];
      const bool inside = output + i < part.c_out;
      const float shift = inside ? linear_shift<T>(p, row0 + line, output + i) : 0.0f;
      from_float(linear_result(p, sum + shift), &out.lane[i]);
    }
    T* target = static_cast<T*>(p.y) + (row0 + line) * p.y_stride + part.column + output;
    if (p.y_vector && output + V <= part.c_out) {
      ptx::store_global(reinterpret_cast<Pack<T, V>*>(target), out);
      continue;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (output + i < part.c_out) ptx::store_global(target + i, out.lane[i]);
    }
  }
}

// How a launch is cut into blocks.
struct LinearGrid {
  int64_t blocks, blocks_y;
};

// Gives every part its blocks of `outputs` outputs.
inline LinearGrid place_parts(LinearParams& p, int outputs, int rows) {
  int64_t blocks = 0;
  for (int32_t i = 0; i < p.part_count; ++i) {
    p.parts[i].first_block = static_cast<int32_t>(blocks);
    blocks += blocks_of(p.parts[i].c_out, outputs);
  }
  return {blocks, blocks_of(p.rows, rows)};
}

template <class T, class W, int kImages, int kOutputs>
const char* launch_linear_rows(LinearParams& p, void* stream) {
  const LinearGrid grid = place_parts(p, kLinearWarps * kOutputs, kImages);
  const LaunchShape shape{grid.blocks, grid.blocks_y, kLinearThreads, 0, p.overlaps};
  return launch("linear_rows", linear_rows_kernel<T, W, kImages, kOutputs>, shape, stream, p);
}

template <class T, class W, int kImages>
const char* launch_linear_rows(LinearParams& p, void* stream) {
  int64_t outputs = 0;
  for (int32_t i = 0; i < p.part_count; ++i) outputs += p.parts[i].c_out;
  // Four outputs of a warp share the loads of x; one keeps all multiprocessors busy.
  const bool few = outputs < int64_t(4) * kLinearWarps * multiprocessors();
  return few ? launch_linear_rows<T, W, kImages, 1>(p, stream)
             : launch_linear_rows<T, W, kImages, 4>(p, stream);
}

template <class MathKind, class W, bool kAligned>
const char* launch_linear_tile(LinearParams& p, void* stream) {
  using Tile = BlockTile<kPlainTile, MathKind, Major::kK, Major::kK>;
  const LinearGrid grid = place_parts(p, Tile::kN, Tile::kM);
  const LaunchShape shape{grid.blocks, grid.blocks_y, Tile::kThreads, Tile::kSharedBytes,
                          p.overlaps};
  return launch("linear_tile", linear_tile_kernel<Tile, W, kAligned>, shape, stream, p);
}

}  // namespace ddsm
