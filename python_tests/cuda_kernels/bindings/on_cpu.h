// Included before a CUDA binding: its kernels are registered for CPU tensors instead.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#define CUDA CPU  // the dispatch key of STABLE_TORCH_LIBRARY_IMPL; torch's headers are through
