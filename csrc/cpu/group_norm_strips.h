// What group norm does along channels, for every kernel that takes part in it: the moments of a
// block of pixels, and the normalisation of one pixel. Only for *_kernel.cpp; see isa.h.
#pragma once

#include "lanes.h"

namespace ddsm::DDSM_ISA {

// Pixels whose mean the sums of a block are taken around.
constexpr int64_t kShiftRows = 8;

template <int N>
struct Number {
  static constexpr int kValue = N;
};

// Calls body(Number<vectors>, channel) so that [0, c) is covered by vectors: strips of Strip
// vectors, then single ones, the last of which overlaps its neighbour. c is at least one vector.
template <int Strip, class C, class Body>
inline void for_each_strip(int64_t c, const Body& body) {
  constexpr int64_t kLanes = Lanes<C>::kCount;
  int64_t i = 0;
  for (; i + Strip * kLanes <= c; i += Strip * kLanes) body(Number<Strip>{}, i);
  for (; i + kLanes <= c; i += kLanes) body(Number<1>{}, i);
  if (i < c) body(Number<1>{}, c - kLanes);
}

// Reads or writes Count vectors from p on; one of fewer elements than a vector for narrow sources.
template <int Count, class T, class V>
static inline void load_strip(const T* p, int64_t lanes, V (&out)[Count]) {
  constexpr int64_t kLanes = Lanes<Compute<T>>::kCount;
  for (int v = 0; v < Count; ++v) {
    out[v] = lanes == kLanes ? load(p + v * kLanes) : load_first(p, lanes);
  }
}

template <int Count, class T, class V>
static inline void store_strip(T* p, int64_t lanes, const V (&values)[Count]) {
  constexpr int64_t kLanes = Lanes<Compute<T>>::kCount;
  for (int v = 0; v < Count; ++v) {
    if (lanes == kLanes) store(p + v * kLanes, values[v]);
    else store_first(p, values[v], lanes);
  }
}

// Mean and sum of squared deviations of `rows` rows, for Count vectors of channels; load_at(row, v)
// reads one. Inlined, so that `lanes` is a constant wherever it is a vector's.
template <int Count, class C, class Load>
__attribute__((always_inline)) static inline void strip_moments(const Load& load_at, int64_t rows,
                                                                int64_t lanes, double* mean,
                                                                double* m2) {
  using V = Vec<C>;
  constexpr int64_t kLanes = Lanes<C>::kCount;
  // Even and odd rows are summed apart: half the rounding, and twice the independent work.
  V shift[Count] = {}, sum[2][Count] = {}, squares[2][Count] = {};
  const int64_t sample = rows < kShiftRows ? rows : kShiftRows;
  for (int64_t r = 0; r < sample; ++r) {
    for (int v = 0; v < Count; ++v) shift[v] += load_at(r, v);
  }
  for (int v = 0; v < Count; ++v) shift[v] *= C(1) / static_cast<C>(sample);
  auto add_row = [&](int64_t row, int half) {
#pragma GCC unroll 2
    for (int v = 0; v < Count; ++v) {
      const V d = load_at(row, v) - shift[v];
      sum[half][v] += d;
      squares[half][v] += d * d;
    }
  };
  int64_t r = 0;
  for (; r + 1 < rows; r += 2) {
    add_row(r, 0);
    add_row(r + 1, 1);
  }
  if (r < rows) add_row(r, 0);
  for (int v = 0; v < Count; ++v) {
    // From memory, the compiler makes vectors of this loop.
    C sums[2][kLanes], products[2][kLanes], shifts[kLanes];
    for (int half = 0; half < 2; ++half) {
      store(sums[half], sum[half][v]);
      store(products[half], squares[half][v]);
    }
    store(shifts, shift[v]);
    for (int64_t i = 0; i < lanes; ++i) {
      const double s = static_cast<double>(sums[0][i]) + sums[1][i], delta = s / rows;
      const double q = static_cast<double>(products[0][i]) + products[1][i] - s * delta;
      mean[v * kLanes + i] = shifts[i] + delta;
      m2[v * kLanes + i] = q > 0 || q != q ? q : 0;
    }
  }
}

// Moments of few channels, several pixels a vector: each of the vector's lanes is summed by itself,
// then the lanes of a channel are merged by Chan's formula.
template <class T>
static inline void packed_moments(const T* x, int64_t stride, int64_t rows, int64_t channels,
                                  double* mean, double* m2) {
  using C = Compute<T>;
  constexpr int64_t kLanes = Lanes<C>::kCount;
  const int64_t parts = kLanes / channels, part_rows = rows / parts;
  double means[kLanes], squares[kLanes];
  const auto load_at = [&](int64_t row, int) {
    const T* p = x + row * parts * stride;
    if (stride == channels) return load(p);
    C lanes[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      lanes[i] = to_compute(p[i / channels * stride + i % channels]);
    }
    return load(lanes);
  };
  strip_moments<1, C>(load_at, part_rows, kLanes, means, squares);
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] = m2[c] = 0;
    for (int64_t i = c; i < kLanes; i += channels) mean[c] += means[i];
    mean[c] /= parts;
    for (int64_t i = c; i < kLanes; i += channels) {
      const double d = means[i] - mean[c];
      m2[c] += squares[i] + part_rows * d * d;
    }
  }
}

// mean[c] and m2[c] (sum of squared deviations) of `rows` pixels x[row * stride + c]. all: whether
// these are all channels there are, not those of one thread; then few of them share vectors.
template <class T>
static inline void row_moments(const T* x, int64_t stride, int64_t rows, int64_t channels, bool all,
                               double* mean, double* m2) {
  using C = Compute<T>;
  constexpr int64_t kLanes = Lanes<C>::kCount;
  if (channels < kLanes) {
    // Not by the stride: a memory format must not change a bit.
    if (all && channels >= 4 && kLanes % channels == 0 && rows % (kLanes / channels) == 0) {
      return packed_moments(x, stride, rows, channels, mean, m2);
    }
    return strip_moments<1, C>(
        [&](int64_t row, int) { return load_first(x + row * stride, channels); }, rows, channels,
        mean, m2);
  }
  for_each_strip<2, C>(channels, [&](auto count, int64_t i) {
    strip_moments<count.kValue, C>(
        [&](int64_t row, int v) { return load(x + row * stride + i + v * kLanes); }, rows, kLanes,
        mean + i, m2 + i);
  });
}

// out = act((x - mean) * scale + beta) of Count vectors, with these three in rows of `stride` from
// norm on; without Norm, act(x).
template <bool Norm, bool Silu, int Count, class T, class C = Compute<T>>
static inline void normalise_strip(const T* x, const C* norm, int64_t stride, int64_t lanes,
                                   Vec<C> (&out)[Count]) {
  load_strip(x, lanes, out);
  if constexpr (Norm) {
    Vec<C> mean[Count], scale[Count], beta[Count];
    load_strip(norm, lanes, mean);
    load_strip(norm + stride, lanes, scale);
    load_strip(norm + 2 * stride, lanes, beta);
    // x - mean first: x * scale + shift would lose the digits that a large mean has in common.
    for (int v = 0; v < Count; ++v) out[v] = (out[v] - mean[v]) * scale[v] + beta[v];
  }
  if constexpr (Silu) silu(out);
}

// Count vectors of `apply_pixels` from channel i on.
template <bool Norm, bool Silu, int Count, int Reads, int Writes, class T, class TY,
          class C = Compute<T>>
static inline void apply_strip(const T* const (&x)[Reads], const C* norm, int64_t stride,
                               int64_t i, int64_t lanes, TY* const (&y)[Writes]) {
  Vec<C> result[Count];
  if constexpr (Norm) norm += i;
  normalise_strip<Norm, Silu>(x[0] + i, norm, stride, lanes, result);
  for (int r = 1; r < Reads; ++r) {
    Vec<C> other[Count];
    normalise_strip<Norm, Silu>(x[r] + i, norm, stride, lanes, other);
    for (int v = 0; v < Count; ++v) result[v] += other[v];
  }
  if constexpr (Reads > 1) {
    for (int v = 0; v < Count; ++v) result[v] *= C(1) / Reads;
  }
  for (int w = 0; w < Writes; ++w) store_strip(y[w] + i, lanes, result);
}

// For the channels of one result, the mean of the normalised pixels x, to all of y.
template <bool Norm, bool Silu, int Reads, int Writes, class T, class TY, class C = Compute<T>>
static inline void apply_pixels(const T* const (&x)[Reads], const C* norm, int64_t stride,
                                int64_t channels, TY* const (&y)[Writes]) {
  constexpr int64_t kLanes = Lanes<C>::kCount;
  if (channels < kLanes) {
    return apply_strip<Norm, Silu, 1>(x, norm, stride, 0, channels, y);
  }
  for_each_strip<2, C>(channels, [&](auto count, int64_t i) {
    apply_strip<Norm, Silu, count.kValue>(x, norm, stride, i, kLanes, y);
  });
}

// y[c] = act((x[c] - mean[c]) * scale[c] + beta[c]) for the channels of one pixel.
template <bool Silu, class T, class TY, class C = Compute<T>>
static inline void apply_row(const T* x, const C* norm, int64_t stride, int64_t channels, TY* y) {
  const T* const from[1] = {x};
  TY* const to[1] = {y};
  apply_pixels<true, Silu>(from, norm, stride, channels, to);
}

}  // namespace ddsm::DDSM_ISA
