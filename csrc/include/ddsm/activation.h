// Contract of sliced_activation, and of the same work fused into products' stores. No torch.
//
//   y[n, t, o] = residual[n, t, o] + gate[n, o] * act(z[n, t, ..])
#pragma once

#include <cstdint>

#include "ddsm/types.h"

namespace ddsm {

// kGelu is x * Phi(x) by erf, kGeluTanh its approximation by tanh; kGeglu takes two blocks of
// columns, value and gate half: value * gelu(gate half). The numbers are those of the schemas.
enum class Activation : int32_t { kNone, kGelu, kGeluTanh, kGeglu };

// z [images * rows][columns], rows z_row_stride apart (strides count elements) with adjacent
// columns: y's channels, of kGeglu twice as many.
struct ActivationArgs {
  // inputs
  const void* z;
  DType z_dtype;  // float32, bfloat16, float64
  int64_t images, rows, channels;  // rows of an image; channels of y
  int64_t z_row_stride;
  Activation activation;
  const void* gate;      // [images][channels], float64 for a float64 z, else float32; null: one
  const void* residual;  // like y, rows residual_row_stride apart; null: zero
  int64_t residual_row_stride;
  // output
  void* y;        // [images * rows][channels] contiguous
  DType y_dtype;  // z_dtype, or kBFloat16 for a float32 z
};

struct ActivationBackwardArgs {
  // inputs, as above
  const void* grad_y;  // [images * rows][channels], of z's type
  int64_t grad_y_row_stride;
  const void* z;
  DType dtype;  // of z
  int64_t images, rows, channels;
  int64_t z_row_stride;
  Activation activation;
  const void* gate;
  // outputs
  void* grad_z;     // [images * rows][columns] contiguous
  void* grad_gate;  // like gate, written; null: not wanted
};

void activation(const ActivationArgs& args);
// Neither result depends on the number of threads.
void activation_backward(const ActivationBackwardArgs& args);

}  // namespace ddsm
