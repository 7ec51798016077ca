// The three transforms of Winograd's convolution F(m x m, 3 x 3) in one dimension, on vectors of
// channels; applied along columns, then rows, they make the two-dimensional ones. Only for
// *_kernel.cpp; see isa.h.
//
//   Y = A^T [ (G g G^T) * (B^T d B) ] A
// d: input tile (m + 2)^2, g: 3 x 3 weights, Y: m x m outputs.
// Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", sec. 4.
#pragma once

#include "gemm_tile.h"

namespace ddsm::DDSM_ISA {

typedef Vec<float> FloatVec;

template <int kTile>
struct Winograd;

// Points 0, a, -a, b, -b and infinity. With a = 3/4 and b = 3/2 (exact in binary, as are a^2 and
// b^2) the largest fp32 error over 128 channels is a quarter of that of the usual 1 and 2.
template <>
struct Winograd<4> {
  static constexpr int kAlpha = 6;
  static constexpr float a = 0.75f, b = 1.5f, a2 = a * a, b2 = b * b, sum2 = a2 + b2, ab2 = a2 * b2;
  // 1 / product of a point's distances from the other finite points
  static constexpr float n0 = 1 / ab2, na = 1 / (2 * a2 * (a2 - b2)), nb = 1 / (2 * b2 * (b2 - a2));

  // B^T d
  template <class V>
  static DDSM_INLINE void input(const V (&d)[6], V (&out)[6]) {
    out[0] = ab2 * d[0] + (d[4] - sum2 * d[2]);
    const V even_a = d[4] - b2 * d[2], odd_a = a * (d[3] - b2 * d[1]);
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    const V even_b = d[4] - a2 * d[2], odd_b = b * (d[3] - a2 * d[1]);
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = ab2 * d[1] + (d[5] - sum2 * d[3]);
  }

  // A^T p
  template <class V>
  static DDSM_INLINE void output(const V (&p)[6], V (&out)[4]) {
    const V even_a = p[1] + p[2], odd_a = p[1] - p[2];
    const V even_b = p[3] + p[4], odd_b = p[3] - p[4];
    out[0] = p[0] + even_a + even_b;
    out[1] = a * odd_a + b * odd_b;
    out[2] = a2 * even_a + b2 * even_b;
    out[3] = (a * a2) * odd_a + ((b * b2) * odd_b + p[5]);
  }

  // G g
  static DDSM_INLINE void weight(const FloatVec (&g)[3], FloatVec (&out)[6]) {
    const FloatVec even_a = na * g[0] + (na * a2) * g[2], odd_a = (na * a) * g[1];
    const FloatVec even_b = nb * g[0] + (nb * b2) * g[2], odd_b = (nb * b) * g[1];
    out[0] = n0 * g[0];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = g[2];
  }

  // A y: the transpose of `output`
  static DDSM_INLINE void output_grad(const FloatVec (&y)[4], FloatVec (&out)[6]) {
    const FloatVec even_a = y[0] + a2 * y[2], odd_a = a * y[1] + (a * a2) * y[3];
    const FloatVec even_b = y[0] + b2 * y[2], odd_b = b * y[1] + (b * b2) * y[3];
    out[0] = y[0];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = y[3];
  }

  // G^T u: the transpose of `weight`
  static DDSM_INLINE void weight_grad(const FloatVec (&u)[6], FloatVec (&out)[3]) {
    const FloatVec even_a = u[1] + u[2], even_b = u[3] + u[4];
    out[0] = n0 * u[0] + na * even_a + nb * even_b;
    out[1] = (na * a) * (u[1] - u[2]) + (nb * b) * (u[3] - u[4]);
    out[2] = (na * a2) * even_a + ((nb * b2) * even_b + u[5]);
  }
};

// Points 0, 1, -1 and infinity.
template <>
struct Winograd<2> {
  static constexpr int kAlpha = 4;

  template <class V>
  static DDSM_INLINE void input(const V (&d)[4], V (&out)[4]) {
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[1] - d[3];
  }

  template <class V>
  static DDSM_INLINE void output(const V (&p)[4], V (&out)[2]) {
    out[0] = p[0] + p[1] + p[2];
    out[1] = p[1] - p[2] - p[3];
  }

  static DDSM_INLINE void weight(const FloatVec (&g)[3], FloatVec (&out)[4]) {
    const FloatVec ends = (g[0] + g[2]) * 0.5f, middle = g[1] * 0.5f;
    out[0] = g[0];
    out[1] = ends + middle;
    out[2] = ends - middle;
    out[3] = g[2];
  }

  static DDSM_INLINE void output_grad(const FloatVec (&y)[2], FloatVec (&out)[4]) {
    out[0] = y[0];
    out[1] = y[0] + y[1];
    out[2] = y[0] - y[1];
    out[3] = -y[1];
  }

  static DDSM_INLINE void weight_grad(const FloatVec (&u)[4], FloatVec (&out)[3]) {
    const FloatVec sum = (u[1] + u[2]) * 0.5f;
    out[0] = u[0] + sum;
    out[1] = (u[1] - u[2]) * 0.5f;
    out[2] = sum + u[3];
  }
};

// The one-dimensional transform `along` [kIn] -> [kOut] over the columns, then the rows, of a tile.
template <int kIn, int kOut, class V, class Along>
DDSM_INLINE void transform_tile(const V (&in)[kIn * kIn], V (&out)[kOut * kOut],
                                const Along& along) {
  V columns[kOut * kIn];
  DDSM_UNROLL
  for (int j = 0; j < kIn; ++j) {
    V from[kIn], to[kOut];
    DDSM_UNROLL
    for (int i = 0; i < kIn; ++i) from[i] = in[i * kIn + j];
    along(from, to);
    DDSM_UNROLL
    for (int i = 0; i < kOut; ++i) columns[i * kIn + j] = to[i];
  }
  DDSM_UNROLL
  for (int i = 0; i < kOut; ++i) {
    V from[kIn], to[kOut];
    DDSM_UNROLL
    for (int j = 0; j < kIn; ++j) from[j] = columns[i * kIn + j];
    along(from, to);
    DDSM_UNROLL
    for (int j = 0; j < kOut; ++j) out[i * kOut + j] = to[j];
  }
}

}  // namespace ddsm::DDSM_ISA
