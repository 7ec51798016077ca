// The activations of ddsm/activation.h for vectors. Only for *_kernel.cpp; see isa.h.
#pragma once

#include "ddsm/activation.h"
#include "lanes.h"

namespace ddsm::DDSM_ISA {

// The normal distribution, Phi(x) and phi(x) = exp(-x^2 / 2) / sqrt(2 pi), to 5 and 3 ulp at most
// (on [-5, 5]).
//
// Phi(-t) = exp(-t^2 / 2) R(t) for t >= 0, where R is a rational minimax approximation of half the
// scaled complementary error function, with a relative error of 5.4e-8 up to t = 10. Beyond t = 13,
// where Phi leaves float's normal numbers, it is 0 or 1.
constexpr float kNormalTop[5] = {2.97028307e-3f, 3.28735384e-2f, 0.160127479f, 0.406915827f, 0.5f};
constexpr float kNormalBottom[6] = {7.44494488e-3f, 8.24205927e-2f, 0.408476325f,
                                    1.10622151f,    1.61171585f,    1.0f};
constexpr float kNormalLimit = 13.0f;
constexpr double kInverseSqrt2Pi = 0.39894228040143267794, kSqrtHalf = 0.70710678118654752440;

template <int Count>
static inline void normal(const Vec<float> (&x)[Count], Vec<float> (&cdf)[Count],
                          Vec<float> (&density)[Count]) {
  typedef typename Lanes<float>::Int Int;
  Vec<float> t[Count], low[Count], e[Count], top[Count], bottom[Count];
  for (int i = 0; i < Count; ++i) t[i] = (Vec<float>)((Int)x[i] & 0x7fffffff);
  for (int i = 0; i < Count; ++i) t[i] = t[i] > kNormalLimit ? broadcast(kNormalLimit) : t[i];
  // t^2 / 2 in two parts, the square of t's first 12 bits, which is exact, and the rest: rounded
  // once, it would cost a relative error of t^2 / 4 ulp.
  for (int i = 0; i < Count; ++i) {
    const Vec<float> first = (Vec<float>)(((Int)t[i] + 0x800) & ~0xfff);
    low[i] = (t[i] - first) * (t[i] + first) * 0.5f;
    e[i] = first * first * -0.5f;
  }
  exp(e);
  for (int i = 0; i < Count; ++i) e[i] = e[i] - e[i] * (low[i] - low[i] * low[i] * 0.5f);
  for (int i = 0; i < Count; ++i) e[i] = t[i] < kNormalLimit ? e[i] : Vec<float>{};
  for (int i = 0; i < Count; ++i) top[i] = broadcast(kNormalTop[0]);
  for (int i = 0; i < Count; ++i) bottom[i] = broadcast(kNormalBottom[0]);
  for (int c = 1; c < 5; ++c) {
    for (int i = 0; i < Count; ++i) top[i] = top[i] * t[i] + kNormalTop[c];
  }
  for (int c = 1; c < 6; ++c) {
    for (int i = 0; i < Count; ++i) bottom[i] = bottom[i] * t[i] + kNormalBottom[c];
  }
  for (int i = 0; i < Count; ++i) {
    const Vec<float> tail = e[i] * (top[i] / bottom[i]);
    cdf[i] = x[i] < 0.0f ? tail : 1.0f - tail;
    density[i] = e[i] * static_cast<float>(kInverseSqrt2Pi);
  }
}

template <int Count>
static inline void normal(const Vec<double> (&x)[Count], Vec<double> (&cdf)[Count],
                          Vec<double> (&density)[Count]) {
  for (int i = 0; i < Count; ++i) {
    for (int lane = 0; lane < Lanes<double>::kCount; ++lane) {
      cdf[i][lane] = 0.5 * __builtin_erfc(-x[i][lane] * kSqrtHalf);
    }
    density[i] = x[i] * x[i] * -0.5;
  }
  exp(density);
  for (int i = 0; i < Count; ++i) {  // exp ends at the smallest normal number
    density[i] = x[i] * x[i] > 1400.0 ? Vec<double>{} : density[i] * kInverseSqrt2Pi;
  }
}

// x * Phi(x) of Count vectors in place, and its slope.
template <int Count, class V>
static inline void gelu(V (&x)[Count], V (&slope)[Count]) {
  V cdf[Count], density[Count];
  normal(x, cdf, density);
  for (int i = 0; i < Count; ++i) {
    slope[i] = cdf[i] + x[i] * density[i];
    x[i] = x[i] * cdf[i];
  }
}

// x (1 + tanh(u / 2)) / 2 = x / (1 + exp(-u)) with u = sqrt(8 / pi) (x + 0.044715 x^3), and its
// slope. Where |x| > 10 this is x or 0 for less of the cubic term, too, which then cannot overflow;
// beyond 1000 either way numbers are taken as there, since exp ends at its largest and smallest.
template <int Count, class V>
static inline void gelu_tanh(V (&x)[Count], V (&slope)[Count]) {
  typedef decltype(x[0][0] + x[0][0]) C;
  constexpr C kLinear = static_cast<C>(1.59576912160573071176);
  constexpr C kCubic = static_cast<C>(1.59576912160573071176 * 0.044715);
  V e[Count], square[Count];
  for (int i = 0; i < Count; ++i) square[i] = x[i] * x[i];
  for (int i = 0; i < Count; ++i) square[i] = square[i] > C(100) ? broadcast(C(100)) : square[i];
  for (int i = 0; i < Count; ++i) e[i] = -x[i] * (square[i] * kCubic + kLinear);
  exp(e);
  for (int i = 0; i < Count; ++i) {
    const V sigmoid = C(1) / (1 + e[i]);
    const V above = x[i] < C(-1000) ? broadcast(C(-1000)) : x[i];
    const V within = above > C(1000) ? broadcast(C(1000)) : above;
    x[i] = above * sigmoid;
    slope[i] = sigmoid + within * sigmoid * (e[i] * sigmoid) * (square[i] * (3 * kCubic) + kLinear);
  }
}

// The function of one argument that an activation is, or that kGeglu takes of its gate half.
template <int Count, class V>
static inline void bend(Activation activation, V (&x)[Count], V (&slope)[Count]) {
  if (activation == Activation::kGeluTanh) return gelu_tanh(x, slope);
  if (activation != Activation::kNone) return gelu(x, slope);
  for (int i = 0; i < Count; ++i) slope[i] = V{} + 1;
}

// The activation of Count vectors in place; `half`: of kGeglu the gate halves, which are changed.
template <int Count, class V>
static inline void activate(Activation activation, V (&value)[Count], V (&half)[Count]) {
  V slope[Count];
  if (activation != Activation::kGeglu) return bend(activation, value, slope);
  gelu(half, slope);
  for (int i = 0; i < Count; ++i) value[i] *= half[i];
}

}  // namespace ddsm::DDSM_ISA
