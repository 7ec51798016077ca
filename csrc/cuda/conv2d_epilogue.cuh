// From a block's sums in shared memory to what the convolution kernels store.
#pragma once

#include "activation.cuh"
#include "conv2d_params.h"
#include "gemm_tile.cuh"

namespace ddsm {

// A number of type T, or of float where `wide`.
template <class T>
DDSM_DEVICE float load_number(const void* data, int64_t index, bool wide) {
  if (wide) return ptx::load_global(static_cast<const float*>(data) + index);
  return to_float(ptx::load_global(static_cast<const T*>(data) + index));
}

template <class T>
DDSM_DEVICE void add_number(void* data, int64_t index, bool wide, float value) {
  const float sum = load_number<T>(data, index, wide) + value;
  if (wide) {
    ptx::store_global(static_cast<float*>(data) + index, sum);
  } else {
    T rounded;
    from_float(sum, &rounded);
    ptx::store_global(static_cast<T*>(data) + index, rounded);
  }
}

// `count` of V numbers, as one access where `vector`.
template <class T, int V>
DDSM_DEVICE Pack<T, V> load_pack(const T* source, int count, bool vector) {
  if (vector && count >= V) return ptx::load_global(reinterpret_cast<const Pack<T, V>*>(source));
  Pack<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.lane[i] = i < count ? ptx::load_global(source + i) : T{};
  return pack;
}

template <class T, int V>
DDSM_DEVICE void store_pack(T* target, const Pack<T, V>& pack, int count, bool vector) {
  if (vector && count >= V) {
    ptx::store_global(reinterpret_cast<Pack<T, V>*>(target), pack);
    return;
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (i < count) ptx::store_global(target + i, pack.lane[i]);
  }
}

// Moments of the block's rounded outputs, kColumns of them a row, which lie in shared memory as
// float.
template <class Tile, int kColumns>
DDSM_DEVICE void store_moments(const ConvParams& p, int32_t m0, int32_t n0) {
  const EpilogueParams& e = p.epilogue;
  const int64_t blocks = moment_blocks(e.pixels);  // of the one class
  constexpr int kRows = static_cast<int>(kMomentPixels);
  for (int item = ptx::thread_index(); item < kColumns * (Tile::kM / kRows);
       item += Tile::kThreads) {
    const int32_t n = n0 + item % kColumns;
    if (n >= p.n) continue;
    const int first = item / kColumns * kRows;
    const int32_t left = p.m - (m0 + first);
    const int end = first + (left < kRows ? left : kRows);
    for (int row = first; row < end;) {
      const int64_t image = p.rows.at(m0 + row).image;
      const int64_t rest = (image + 1) * e.pixels - (m0 + row);
      const int stop = rest < end - row ? row + static_cast<int>(rest) : end;
      // Deviations from the first value: data, so the squares cannot cancel badly.
      const float shift = ptx::load_shared<float>(Tile::out_address(row, item % kColumns));
      float sum = 0, square = 0;
      const float count = static_cast<float>(stop - row);
      const int64_t block = (m0 + row) / kMomentPixels - image * e.pixels / kMomentPixels;
      for (; row < stop; ++row) {
        const float d = ptx::load_shared<float>(Tile::out_address(row, item % kColumns)) - shift;
        sum += d;
        square += d * d;
      }
      const float delta = sum / count, m2 = square - sum * delta;
      ptx::store_global(e.moments + (image * blocks + block) * p.n + n,
                        Moments{shift + delta, m2 > 0 ? m2 : 0.0f});
    }
  }
}

// Puts a split's sums beside those of the tile's other splits. The block that comes last has the
// sums of all of them in shared memory, added in the order of the splits; for others it is false.
template <class Tile>
DDSM_DEVICE bool add_splits(const ConvParams& p, int64_t tile, int32_t split, int32_t m0) {
  using Four = Pack<float, 4>;
  constexpr int kItems = Tile::kM * Tile::kN / 4, kPerRow = Tile::kN / 4;
  Four* partial = reinterpret_cast<Four*>(p.partial) + tile * p.splits * kItems;
  const int32_t rows = p.m - m0 < Tile::kM ? p.m - m0 : Tile::kM;
  const auto address = [](int item) {
    return Tile::out_address(item / kPerRow, item % kPerRow * 4);
  };
  for (int item = ptx::thread_index(); item < rows * kPerRow; item += Tile::kThreads) {
    ptx::store_global(partial + split * kItems + item, ptx::load_shared<Four>(address(item)));
  }
  ptx::sync_threads();
  if (ptx::thread_index() == 0) {
    const unsigned last = static_cast<unsigned>(p.splits) - 1;
    ptx::store_shared(Tile::kTicket, ptx::take_ticket(p.tickets + tile, last));
  }
  ptx::sync_threads();
  if (ptx::load_shared<unsigned>(Tile::kTicket) + 1 < static_cast<unsigned>(p.splits)) return false;
  for (int item = ptx::thread_index(); item < rows * kPerRow; item += Tile::kThreads) {
    Four sum{};
    for (int32_t i = 0; i < p.splits; ++i) {
      const Four of_split = ptx::load_of_blocks(partial + i * kItems + item);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum.lane[j] += of_split.lane[j];
    }
    ptx::store_shared(address(item), sum);
  }
  ptx::sync_threads();
  return true;
}

template <class T>
DDSM_DEVICE float bias_of(const ConvParams& p, int32_t column) {
  const int32_t part = p.parts.part(column);
  const void *bias = p.parts.bias_of(part), *shortcut = p.epilogue.shortcut_bias;
  if (column >= p.n) return 0.0f;
  const bool wide = p.epilogue.bias_wide;
  const float own = bias ? load_number<T>(bias, p.parts.channel(column, part), wide) : 0.0f;
  return shortcut ? own + load_number<T>(shortcut, column, wide) : own;
}

// Of GEGLU's gate half.
template <class T>
DDSM_DEVICE float gate_half_bias_of(const ConvParams& p, int32_t column) {
  const void* bias = p.parts.bias_of(1);
  return bias && column < p.n ? load_number<T>(bias, column, p.epilogue.bias_wide) : 0.0f;
}

// Row m's pixel, counted over all images of y.
DDSM_DEVICE int64_t pixel_of(const ConvParams& p, int32_t m) {
  const EpilogueParams& e = p.epilogue;
  if (e.pixel_class.every == 1) return m;
  const auto at = p.rows.at(m);
  return at.image * e.pixels + e.pixel_class.place(at.h, at.w);
}

// V numbers of image `image` that all its pixels have: a row of a shift or a gate.
template <class T, int V>
DDSM_DEVICE Pack<T, V> load_of_image(const void* rows, int64_t stride, int64_t image, int32_t n,
                                     int count) {
  return load_pack<T, V>(static_cast<const T*>(rows) + image * stride + n, count, false);
}

template <class T, int V>
DDSM_DEVICE void multiply_by_gate(const ConvParams& p, float (&value)[V], int32_t m, int32_t n) {
  const EpilogueParams& e = p.epilogue;
  if (!e.gate) return;
  const auto gate =
      load_of_image<T, V>(e.gate, e.gate_stride, p.rows.at(m).image, n, p.n - n);
#pragma unroll
  for (int i = 0; i < V; ++i) value[i] *= to_float(gate.lane[i]);
}

// Stores the block's outputs y[m0.., n0..] from the sums in shared memory.
template <class Tile, ConvKind kKind = ConvKind::kForward>
DDSM_DEVICE void finish_tile(const ConvParams& p, int32_t m0, int32_t n0) {
  using T = typename Tile::Element;
  constexpr int kColumns = columns_of_y(kKind, Tile::kN);
  constexpr int V = 16 / sizeof(T), kPerRow = kColumns / V;
  static_assert(Tile::kThreads % kPerRow == 0);  // a thread keeps its columns
  constexpr bool kGeglu = kKind == ConvKind::kGeglu;
  const EpilogueParams& e = p.epilogue;
  const int column = ptx::thread_index() % kPerRow * V;
  const int32_t n = n0 + column;
  float bias[V], gate_half_bias[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    bias[i] = bias_of<T>(p, n + i);
    if constexpr (kGeglu) gate_half_bias[i] = gate_half_bias_of<T>(p, n + i);
  }
  for (int row = ptx::thread_index() / kPerRow; row < Tile::kM; row += Tile::kThreads / kPerRow) {
    const int64_t m = m0 + row;
    if (m >= p.m || n >= p.n) continue;
    float value[V];
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      const auto four = ptx::load_shared<Pack<float, 4>>(Tile::out_address(row, column + i));
#pragma unroll
      for (int j = 0; j < 4; ++j) value[i + j] = four.lane[j] + bias[i + j];
    }
    if (e.shift) {
      const int64_t image = p.rows.at(static_cast<int32_t>(m)).image;
      const auto pack = load_of_image<T, V>(e.shift, e.shift_stride, image, n, p.n - n);
#pragma unroll
      for (int i = 0; i < V; ++i) value[i] += to_float(pack.lane[i]);
    }
    if constexpr (kGeglu) {
#pragma unroll
      for (int i = 0; i < V; i += 4) {
        const auto four =
            ptx::load_shared<Pack<float, 4>>(Tile::out_address(row, kColumns + column + i));
#pragma unroll
        for (int j = 0; j < 4; ++j) value[i + j] *= gelu(four.lane[j] + gate_half_bias[i + j]);
      }
    } else if constexpr (is_activated(kKind)) {
      activate(e.activation, value);
    }
    if constexpr (is_activated(kKind)) {
      multiply_by_gate<T>(p, value, static_cast<int32_t>(m), n);
    }
    if (e.residual) {
      const T* residual = static_cast<const T*>(e.residual) + m * e.residual_stride + n;
      const auto pack = load_pack<T, V>(residual, p.n - n, e.vector);
#pragma unroll
      for (int i = 0; i < V; ++i) value[i] += to_float(pack.lane[i]);
    }
    Pack<T, V> out;
#pragma unroll
    for (int i = 0; i < V; ++i) from_float(value[i] * e.gain, &out.lane[i]);
    const int64_t pixel = pixel_of(p, static_cast<int32_t>(m));
    store_pack(static_cast<T*>(e.y) + pixel * e.y_stride + n, out, p.n - n, e.vector);
    if (e.moments) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        ptx::store_shared(Tile::out_address(row, column + i), to_float(out.lane[i]));
      }
    }
  }
  if (e.moments) {
    Tile::sync();
    store_moments<Tile, kColumns>(p, m0, n0);
  }
}

}  // namespace ddsm
