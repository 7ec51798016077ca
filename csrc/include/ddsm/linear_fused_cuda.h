// Contract of sliced_linear_fused on CUDA between bindings and kernels.
#pragma once

#include <cstdint>

#include "ddsm/types.h"

namespace ddsm {

// One weight beside others, and where its outputs go.
struct LinearCudaPart {
  const void* weight;  // [c_out or more, c or more]
  const void* bias;    // [c_out or more] of the weight's dtype; null: zero
  int64_t out_stride, in_stride;  // of weight
  int64_t c_out;
  int64_t column;  // of y, where the part's outputs begin: a multiple of kLinearColumns
};

// Parts begin at multiples of this: their rows then begin at multiples of 16 bytes.
constexpr int64_t kLinearColumns = 8;
// More parts take several launches.
constexpr int64_t kLinearPartsALaunch = 64;

// y[:, column .. column + c_out] = act(x weight[:c_out, :c]^T + bias[:c_out] + shift) of every
// part, rounded once. Columns between parts are not written.
struct LinearFusedCudaArgs {
  DType dtype;         // of x and y: float32, bfloat16, float16
  DType weight_dtype;  // the same or float32
  bool ieee;           // float32 products in full precision; false: tf32 where that is faster
  bool silu;           // act(u) = u / (1 + exp(-u))
  bool overlaps;       // as Conv2dCudaOptions::overlaps
  // inputs
  const void* x;  // [rows, c], columns adjacent
  int64_t x_stride, rows, c;
  const LinearCudaPart* parts;
  int64_t part_count;
  const void* shift;  // [rows, c_out] of dtype, columns adjacent, beside one part; null: zero
  int64_t shift_stride;
  // output
  void* y;  // [rows, y_stride]
  int64_t y_stride;
};

// Null, or why it refused or what a launch reported.
const char* linear_fused_cuda(const LinearFusedCudaArgs& args, void* stream);

}  // namespace ddsm
