// Contract of sliced_attention on CUDA between bindings and kernels; attention.h has the arguments,
// of which `slots` says nothing here. dtype: float32 (products in full precision, as torch's matrix
// products are by default), bfloat16, float16. Any d.
//
// Everything runs on the current device; `stream` is a cudaStream_t. Functions return null, or why
// they refused or what a launch reported. Sums have one order: results repeat bit for bit.
#pragma once

#include <cstdint>

#include "ddsm/attention.h"

namespace ddsm {

// Bytes of args.scratch for the backward, 16-byte aligned; the forward needs none.
int64_t attention_backward_cuda_scratch_bytes(const AttentionArgs& args);

const char* attention_forward_cuda(const AttentionArgs& args, void* stream);
const char* attention_backward_cuda(const AttentionArgs& args, void* stream);

}  // namespace ddsm
