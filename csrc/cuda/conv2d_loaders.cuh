// How the convolution kernels fill their operand tiles: from pixels by index, from the weight slice
// in place. Chunks of 16 bytes come by cp.async where they are aligned, else element by element;
// kAligned: all of them are, so that nothing asks.
#pragma once

#include "chunk_loads.cuh"
#include "conv2d_params.h"
#include "gemm_tile.cuh"

namespace ddsm {

// A chunk like load_vector's from aligned float32 memory.
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

// The K loop's place: taps outermost, then sources, then their channels in steps; the shortcut's
// sources follow the last tap's.
struct KCursor {
  int32_t tap, source, channel;

  DDSM_DEVICE bool in_shortcut() const { return source >= kFirstShortcut; }

  // True if the tap or the source is another one now.
  DDSM_DEVICE bool advance(const ConvParams& params, int step_channels) {
    channel += step_channels;
    if (channel < params.source[source].channels) return false;
    leave_source(params);
    return true;
  }
  // To the first channel of the next source.
  DDSM_DEVICE void leave_source(const ConvParams& params) {
    channel = 0;
    if (++source == params.source_count) {
      ++tap;
      source = tap < params.taps.count() ? 0 : kFirstShortcut;
    }
  }
};

// Steps of one source.
DDSM_DEVICE int32_t steps_of(const ImageView& source, int step_channels) {
  return (source.channels + step_channels - 1) / step_channels;
}

DDSM_DEVICE KCursor cursor_at(const ConvParams& params, int32_t step, int step_channels) {
  const int32_t first = steps_of(params.source[0], step_channels);
  const int32_t of_tap =
      first + (params.source_count > 1 ? steps_of(params.source[1], step_channels) : 0);
  const int32_t taps = params.taps.count(), tap = step / of_tap;
  if (tap >= taps) {
    const int32_t in_shortcut = step - taps * of_tap;
    const int32_t of_first = steps_of(params.source[kFirstShortcut], step_channels);
    const bool second = in_shortcut >= of_first;
    return {taps, kFirstShortcut + second, (in_shortcut - (second ? of_first : 0)) * step_channels};
  }
  const int32_t in_tap = step - tap * of_tap;
  const bool second = in_tap >= first;
  return {tap, second, (in_tap - (second ? first : 0)) * step_channels};
}

// Loads A (pixels, gathered) and B (weights: rows n in the forward, rows k in the gradient of x).
// What stays the same from step to step is kept: the loop has few instructions beside the products.
template <class Tile, ConvKind kKind, bool kAligned>
struct ConvLoader {
  using A = typename Tile::A;
  using B = typename Tile::B;
  using T = typename Tile::Element;
  static constexpr bool kGradient = kKind == ConvKind::kGradient;
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
    find_chunks();
    find();
  }

  // Offsets of the thread's chunks in the weight that the cursor is in.
  DDSM_DEVICE void find_chunks() {
    const WeightView& weight = params.weight[cursor.in_shortcut()];
#pragma unroll
    for (int i = 0; i < kChunksB; ++i) {
      const int32_t line = item(i) / B::kChunks, along = item(i) % B::kChunks * B::kVector;
      if constexpr (kGradient) {
        in_weight[i] = line * weight.out_stride + (n0 + along) * weight.in_stride;
      } else {
        const PartMap& parts = params.parts;
        int32_t n = n0 + line, part = parts.part(n), o = parts.channel(n, part);
        if constexpr (kKind == ConvKind::kGeglu) {
          constexpr int kColumns = columns_of_y(kKind, Tile::kN);
          part = line / kColumns;
          n = o = n0 + line % kColumns;
        }
        const int64_t offset = parts.offset_of(part) + along * weight.in_stride;
        in_weight[i] = n < params.n ? offset + o * weight.out_stride : -1;
      }
    }
  }

  static DDSM_DEVICE int item(int i) {
    return static_cast<int>(ptx::thread_index()) + i * kThreads;
  }

  DDSM_DEVICE void load(uint32_t stage, int32_t) {
    load_a(stage);
    load_b(stage + A::kBytes);
    if (!cursor.advance(params, A::kStep)) return;
    if (cursor.source == kFirstShortcut) find_chunks();
    find();
  }

  // Offsets for the cursor's tap and source.
  DDSM_DEVICE void find() {
    const ImageView& source = params.source[cursor.source];
    const WeightView& weight = params.weight[cursor.in_shortcut()];
    const auto tap = params.taps.tap(cursor.tap);
#pragma unroll
    for (int i = 0; i < kChunksA; ++i) {
      const int32_t m = m0 + item(i) / A::kChunks;
      const auto at = params.rows.at(m < params.m ? m : 0);
      if (cursor.in_shortcut()) {
        pixel[i] = m < params.m ? pixel_offset(source, at.image, at.h, at.w) : -1;
        continue;
      }
      const int32_t up_h = at.h * params.h.step + tap.h_offset;
      const int32_t up_w = at.w * params.w.step + tap.w_offset;
      const bool valid = m < params.m && params.h.valid(up_h) && params.w.valid(up_w);
      pixel[i] = valid ? pixel_offset(source, at.image, params.h.source(up_h),
                                      params.w.source(up_w))
                       : -1;
    }
    corner = source.weight_channel * weight.in_stride;
    if (!cursor.in_shortcut()) corner += tap.r * weight.r_stride + tap.s * weight.s_stride;
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
    const WeightView& weight = params.weight[cursor.in_shortcut()];
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
