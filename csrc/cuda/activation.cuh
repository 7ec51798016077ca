// The activations of ddsm/activation.h and their derivatives, of single numbers.
#pragma once

#include "ddsm/activation.h"
#include "ptx.cuh"

namespace ddsm {

// Phi(x), the distribution of normal numbers.
DDSM_DEVICE float normal_distribution(float x) {
  constexpr float kSqrtHalf = 0.70710678118654752f;
  return fmaf(0.5f, ptx::erf(x * kSqrtHalf), 0.5f);
}
// 0.5 (1 + tanh(u)) of u = sqrt(2 / pi) (x + 0.044715 x^3): the sigmoid of 2 u, without the
// difference of nearly equal numbers that 1 + tanh(u) is for x far below 0.
DDSM_DEVICE float tanh_distribution(float x) {
  constexpr float kLog2E = 1.4426950408889634f, kSqrtTwoOverPi = 0.79788456080286536f;
  const float exponent = -2 * kLog2E * kSqrtTwoOverPi * fmaf(0.044715f * x * x, x, x);
  return ptx::reciprocal(1.0f + ptx::exp2(exponent));
}

DDSM_DEVICE float gelu(float x) { return x * normal_distribution(x); }
DDSM_DEVICE float gelu_tanh(float x) { return x * tanh_distribution(x); }

// A function's value and its derivative.
struct ValueAndSlope {
  float value, slope;
};

// x Phi(x), Phi(x) + x phi(x)
DDSM_DEVICE ValueAndSlope gelu_and_slope(float x) {
  constexpr float kHalfLog2E = 0.72134752044448170f, kInverseSqrtTwoPi = 0.39894228040143268f;
  const float below = normal_distribution(x);
  return {x * below, fmaf(x * kInverseSqrtTwoPi, ptx::exp2(-kHalfLog2E * x * x), below)};
}
// x s, s + x s (1 - s) 2 du/dx of the sigmoid s above
DDSM_DEVICE ValueAndSlope gelu_tanh_and_slope(float x) {
  constexpr float kTwoSqrtTwoOverPi = 2 * 0.79788456080286536f;
  const float s = tanh_distribution(x);
  const float slope = kTwoSqrtTwoOverPi * fmaf(3 * 0.044715f * x, x, 1.0f);
  return {x * s, fmaf(x * slope, s * (1.0f - s), s)};
}

// Applies an activation of one block of columns: one branch for all of the numbers.
template <int V>
DDSM_DEVICE void activate(Activation activation, float (&x)[V]) {
  if (activation == Activation::kGelu) {
#pragma unroll
    for (float& number : x) number = gelu(number);
  } else if (activation == Activation::kGeluTanh) {
#pragma unroll
    for (float& number : x) number = gelu_tanh(number);
  }
}

// The same, with the derivatives.
template <int V>
DDSM_DEVICE void activate(Activation activation, float (&x)[V], float (&slope)[V]) {
  const auto apply = [&](auto function) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const ValueAndSlope found = function(x[i]);
      x[i] = found.value;
      slope[i] = found.slope;
    }
  };
  if (activation == Activation::kGelu) {
    apply([](float u) { return gelu_and_slope(u); });
  } else if (activation == Activation::kGeluTanh) {
    apply([](float u) { return gelu_tanh_and_slope(u); });
  } else {
    apply([](float u) { return ValueAndSlope{u, 1.0f}; });
  }
}

}  // namespace ddsm
