// Contract of sinusoidal_embedding on CUDA between bindings and kernels.
#pragma once

#include <cstdint>

#include "ddsm/types.h"

namespace ddsm {

enum class TimeType : int32_t { kFloat32, kFloat64, kInt64 };

// y[n, 2i] = sin(t f_i), y[n, 2i + 1] = cos(t f_i), f_i = 10000^(-2i / dim), in float32 and rounded
// once; in halves f_i = 10000^(-i / (dim / 2 - freq_shift)), or 2 pi frequencies[i], and
// y[n, i] = cos(t f_i), y[n, dim / 2 + i] = sin(t f_i), or (swapped) the other way round. Where t
// is a row of the table, that row.
struct SinusoidalCudaArgs {
  DType dtype;        // of y: float32, bfloat16, float16
  DType table_dtype;  // the same choice
  TimeType t_type;
  bool halves, swapped;
  double freq_shift;
  // inputs
  const void* t;      // [n], t_stride apart
  const void* table;  // [rows, dim] contiguous; null: none
  const float* frequencies;  // [dim / 2] contiguous; null: by the formula
  int64_t t_stride, n, dim, rows;  // dim: even
  // output
  void* y;  // [n, dim] contiguous
};

// Null, or why it refused or what the launch reported. One launch, which begins after all kernels
// before it in the stream have ended.
const char* sinusoidal_embedding_cuda(const SinusoidalCudaArgs& args, void* stream);

}  // namespace ddsm
