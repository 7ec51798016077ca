// Contract between the bindings and the kernels of sliced_attention.
#pragma once

#include <cstdint>

#include "ddsm/types.h"

namespace ddsm {

// A [n, heads, t, d] tensor; d is adjacent in memory, the others have strides in elements.
struct AttentionTensor {
  void* data;
  int64_t n_stride, head_stride, t_stride;
};

struct AttentionArgs {
  DType dtype;  // CPU: float32, bfloat16, float64; attention_cuda.h: float32, bfloat16, float16
  int64_t n, heads, t_q, t_k, d;
  double scale;
  int64_t slots;  // parts of the scratch that threads work in at the same time, >= 1
  // inputs
  AttentionTensor q;         // [n, heads, t_q, d]
  AttentionTensor k;         // [n, heads, t_k, d]
  AttentionTensor v;         // [n, heads, t_k, d]
  AttentionTensor grad_out;  // [n, heads, t_q, d]; backward only
  // output of forward, input of backward
  AttentionTensor out;  // [n, heads, t_q, d]
  // [n, heads, t_q] log of the sum of exp(scores); float64 for float64, else float32. The CPU's
  // forward leaves it out where this is null.
  void* lse;
  // outputs of backward
  AttentionTensor grad_q;  // [n, heads, t_q, d]
  AttentionTensor grad_k;  // [n, heads, t_k, d]
  AttentionTensor grad_v;  // [n, heads, t_k, d]
  void* scratch;           // attention_*_scratch_bytes(args), 64-byte aligned
};

// The slots that pay for the work of args, of which there is no slot yet (CPU).
DDSM_EXPORT int64_t attention_slots(const AttentionArgs& args);

DDSM_EXPORT int64_t attention_forward_scratch_bytes(const AttentionArgs& args);
int64_t attention_backward_scratch_bytes(const AttentionArgs& args);

// out = softmax(scale * q k^T) v; fills out and, on the GPU always, lse.
void attention_forward(const AttentionArgs& args);

// Fills grad_q, grad_k, grad_v.
void attention_backward(const AttentionArgs& args);

}  // namespace ddsm
