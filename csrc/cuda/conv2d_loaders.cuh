// How the convolution kernels fill their operand tiles: from pixels by index, from the weight slice
// in place. Chunks of 16 bytes come by cp.async where they are aligned, else element by element;
// kAligned: all of them are, so that nothing asks.
#pragma once

#include "conv2d_params.h"
#include "gemm_tile.cuh"

namespace ddsm {

// `count` (any number; below 1: none) of a chunk's elements from aligned memory, the rest zero.
template <class T>
DDSM_DEVICE void load_vector(uint32_t address, const void* base, int64_t offset, int count) {
  constexpr int kVector = 16 / sizeof(T);
  const int valid = count < 0 ? 0 : count < kVector ? count : kVector;
  const T* source = static_cast<const T*>(base) + (valid > 0 ? offset : 0);
  ptx::cp_async(address, source, valid * static_cast<int>(sizeof(T)));
}

// The same from memory of type S that is `stride` apart and not aligned.
template <class T, class S>
DDSM_DEVICE void load_elements(uint32_t address, const void* base, int64_t offset, int64_t stride,
                               int count) {
  constexpr int kVector = 16 / sizeof(T);
  const S* source = static_cast<const S*>(base);
  Pack<T, kVector> chunk;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float value = i < count ? to_float(ptx::load_global(source + offset + i * stride)) : 0.0f;
    from_float(value, &chunk.lane[i]);
  }
  ptx::store_shared(address, chunk);
}

// The same from aligned float32 memory.
template <class T>
DDSM_DEVICE void load_rounded(uint32_t address, const void* base, int64_t offset, int count) {
  constexpr int kVector = 16 / sizeof(T);
  if (count < kVector) {
    load_elements<T, float>(address, base, offset, 1, count);
    return;
  }
  Pack<T, kVector> chunk;
#pragma unroll
  for (int i = 0; i < kVector; i += 4) {
    const auto* source = static_cast<const float*>(base) + offset + i;
    const auto four = ptx::load_global(reinterpret_cast<const Pack<float, 4>*>(source));
#pragma unroll
    for (int j = 0; j < 4; ++j) from_float(four.lane[j], &chunk.lane[i + j]);
  }
  ptx::store_shared(address, chunk);
}

template <class T, bool kAligned>
DDSM_DEVICE void load_pixels(uint32_t address, const ImageView& image, int64_t offset, int count) {
  if (kAligned || image.vector) load_vector<T>(address, image.data, offset, count);
  else load_elements<T, T>(address, image.data, offset, 1, count);
}

template <class T, bool kAligned>
DDSM_DEVICE void load_weights(uint32_t address, const WeightView& weight, int64_t offset,
                              int count) {
  if (kAligned) {
    load_vector<T>(address, weight.data, offset, count);
  } else if (weight.wide) {
    if (weight.vector) load_rounded<T>(address, weight.data, offset, count);
    else load_elements<T, float>(address, weight.data, offset, weight.in_stride, count);
  } else {
    if (weight.vector) load_vector<T>(address, weight.data, offset, count);
    else load_elements<T, T>(address, weight.data, offset, weight.in_stride, count);
  }
}

DDSM_DEVICE int64_t pixel_offset(const ImageView& image, int32_t n, int32_t h, int32_t w) {
  return n * image.n_stride + h * image.h_stride + w * image.w_stride;
}

// The K loop's place: taps outermost, then sources, then their channels in steps.
struct KCursor {
  int32_t tap, source, channel;

  // True if the tap or the source is another one now.
  DDSM_DEVICE bool advance(const ConvParams& params, int step_channels) {
    channel += step_channels;
    if (channel < params.source[source].channels) return false;
    channel = 0;
    if (++source == params.source_count) {
      source = 0;
      ++tap;
    }
    return true;
  }
};

DDSM_DEVICE KCursor cursor_at(const ConvParams& params, int32_t step, int step_channels) {
  const int32_t first = (params.source[0].channels + step_channels - 1) / step_channels;
  int32_t of_tap = first;
  if (params.source_count > 1) {
    of_tap += (params.source[1].channels + step_channels - 1) / step_channels;
  }
  const int32_t in_tap = step % of_tap;
  const bool second = in_tap >= first;
  return {step / of_tap, second, (in_tap - (second ? first : 0)) * step_channels};
}

// Loads A (pixels, gathered) and B (weights: rows n in the forward, rows k in the gradient of x).
// What stays the same from step to step is kept: the loop has few instructions beside the products.
template <class Tile, bool kGradient, bool kAligned>
struct ConvLoader {
  using A = typename Tile::A;
  using B = typename Tile::B;
  using T = typename Tile::Element;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kChunksA = A::kLines * A::kChunks / kThreads;  // of a thread
  static constexpr int kChunksB = B::kLines * B::kChunks / kThreads;
  static_assert(kThreads % A::kChunks == 0 && A::kLines * A::kChunks % kThreads == 0);
  static_assert(B::kLines * B::kChunks % kThreads == 0);

  const ConvParams& params;
  KCursor cursor;
  int32_t m0, n0;
  // Where the cursor's tap and source find the pixels of the thread's rows of A; negative: outside
  // of the image. The rows' own pixels are found again for each tap: registers are short.
  int64_t pixel[kChunksA];
  // Weight offsets: of the thread's chunks (negative: past the last output channel), and of the
  // cursor's tap and source.
  int64_t in_weight[kChunksB], corner;

  DDSM_DEVICE ConvLoader(const ConvParams& p, int32_t first_m, int32_t first_n, int32_t first_step)
      : params(p), cursor(cursor_at(p, first_step, A::kStep)), m0(first_m), n0(first_n) {
#pragma unroll
    for (int i = 0; i < kChunksB; ++i) {
      const int32_t line = item(i) / B::kChunks, along = item(i) % B::kChunks * B::kVector;
      if constexpr (kGradient) {
        in_weight[i] = line * p.weight.out_stride + (n0 + along) * p.weight.in_stride;
      } else {
        const int32_t part = p.parts.part(n0 + line), o = p.parts.channel(n0 + line, part);
        const int64_t offset = p.parts.offset_of(part) + along * p.weight.in_stride;
        in_weight[i] = n0 + line < p.n ? offset + o * p.weight.out_stride : -1;
      }
    }
    find();
  }

  static DDSM_DEVICE int item(int i) {
    return static_cast<int>(ptx::thread_index()) + i * kThreads;
  }

  DDSM_DEVICE void load(uint32_t stage, int32_t) {
    load_a(stage);
    load_b(stage + A::kBytes);
    if (cursor.advance(params, A::kStep)) find();
  }

  // Offsets for the cursor's tap and source.
  DDSM_DEVICE void find() {
    const ImageView& source = params.source[cursor.source];
    const WeightView& weight = params.weight;
    const auto tap = params.taps.tap(cursor.tap);
#pragma unroll
    for (int i = 0; i < kChunksA; ++i) {
      const int32_t m = m0 + item(i) / A::kChunks;
      const auto at = params.rows.at(m < params.m ? m : 0);
      const int32_t up_h = at.h * params.h.step + tap.h_offset;
      const int32_t up_w = at.w * params.w.step + tap.w_offset;
      const bool valid = m < params.m && params.h.valid(up_h) && params.w.valid(up_w);
      pixel[i] = valid ? pixel_offset(source, at.image, params.h.source(up_h),
                                      params.w.source(up_w))
                       : -1;
    }
    corner = tap.r * weight.r_stride + tap.s * weight.s_stride +
             source.weight_channel * weight.in_stride;
  }

  DDSM_DEVICE void load_a(uint32_t base) {
    const ImageView& source = params.source[cursor.source];
#pragma unroll
    for (int i = 0; i < kChunksA; ++i) {
      const int chunk = item(i) % A::kChunks;
      const int32_t channel = cursor.channel + chunk * A::kVector;
      load_pixels<T, kAligned>(base + A::chunk_address(item(i) / A::kChunks, chunk), source,
                     pixel[i] + channel, pixel[i] < 0 ? 0 : source.channels - channel);
    }
  }

  DDSM_DEVICE void load_b(uint32_t base) {
    const WeightView& weight = params.weight;
    const int32_t channels = params.source[cursor.source].channels;
    const int64_t step =
        corner + cursor.channel * (kGradient ? weight.out_stride : weight.in_stride);
#pragma unroll
    for (int i = 0; i < kChunksB; ++i) {
      const int32_t line = item(i) / B::kChunks, chunk = item(i) % B::kChunks;
      const int32_t along = chunk * B::kVector;
      const bool valid = kGradient ? cursor.channel + line < channels : in_weight[i] >= 0;
      const int32_t left = kGradient ? params.n - n0 - along : channels - cursor.channel - along;
      load_weights<T, kAligned>(base + B::chunk_address(line, chunk), weight, step + in_weight[i],
                      valid ? left : 0);
    }
  }
};

// Loads A (grad_y) and B (x, gathered for one tap): lines are pixels, chunks channels.
template <class Tile, bool kAligned>
struct GradWeightLoader {
  using A = typename Tile::A;
  using B = typename Tile::B;
  using T = typename Tile::Element;
  static constexpr int kThreads = Tile::kThreads;

  const GradWeightParams& params;
  const ImageView& source;
  TapMap::Tap tap;
  int32_t first_out, first_in;  // channels of the block's outputs

  DDSM_DEVICE void load(uint32_t stage, int32_t step) {
    const int32_t first_pixel = step * A::kStep;
#pragma unroll
    for (int i = 0; i < A::kLines * A::kChunks / kThreads; ++i) {
      const int item = ptx::thread_index() + i * kThreads;
      const int line = item / A::kChunks, chunk = item % A::kChunks;
      const int32_t index = first_pixel + line, channel = first_out + chunk * A::kVector;
      const auto pixel = params.rows.at(index < params.pixels ? index : 0);
      const int64_t offset = pixel_offset(params.grad_y, pixel.image, pixel.h, pixel.w) + channel;
      load_pixels<T, kAligned>(stage + A::chunk_address(line, chunk), params.grad_y, offset,
                     index < params.pixels ? params.c_out - channel : 0);
    }
#pragma unroll
    for (int i = 0; i < B::kLines * B::kChunks / kThreads; ++i) {
      const int item = ptx::thread_index() + i * kThreads;
      const int line = item / B::kChunks, chunk = item % B::kChunks;
      const int32_t index = first_pixel + line, channel = first_in + chunk * B::kVector;
      const auto pixel = params.rows.at(index < params.pixels ? index : 0);
      const int32_t up_h = pixel.h * params.h.step + tap.h_offset;
      const int32_t up_w = pixel.w * params.w.step + tap.w_offset;
      const bool valid =
          index < params.pixels && params.h.valid(up_h) && params.w.valid(up_w);
      const int64_t offset =
          pixel_offset(source, pixel.image, params.h.source(up_h), params.w.source(up_w)) + channel;
      load_pixels<T, kAligned>(stage + A::kBytes + B::chunk_address(line, chunk), source, offset,
                     valid ? source.channels - channel : 0);
    }
  }
};

}  // namespace ddsm
