// What norms make of their parameters: gamma and beta of a channel, with FiLM in them. Only for
// *_kernel.cpp; see isa.h.
#pragma once

#include "lanes.h"

namespace ddsm::DDSM_ISA {

// A parameter, a modulation or the gradient of one.
static inline double value_at(const void* values, DType dtype, int64_t index) {
  if (dtype == DType::kFloat64) return static_cast<const double*>(values)[index];
  if (dtype == DType::kFloat32) return static_cast<const float*>(values)[index];
  return to_compute(static_cast<const Bf16*>(values)[index]);
}

static inline void store_at(void* values, DType dtype, int64_t index, double x) {
  if (dtype == DType::kFloat64) static_cast<double*>(values)[index] = x;
  else if (dtype == DType::kFloat32) static_cast<float*>(values)[index] = static_cast<float>(x);
  else from_compute(static_cast<float>(x), static_cast<Bf16*>(values) + index);
}

static inline void add_at(void* values, DType dtype, int64_t index, double x) {
  store_at(values, dtype, index, value_at(values, dtype, index) + x);
}

struct NormAffine {
  double gamma, beta;

  // (normalised * gamma + beta) * (1 + scale) + shift is an affine map again.
  NormAffine modulated(double scale, double shift) const {
    return {gamma * (1 + scale), beta * (1 + scale) + shift};
  }
};

}  // namespace ddsm::DDSM_ISA
