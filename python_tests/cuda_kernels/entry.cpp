// C entry points of the emulated kernels, for emulated.py.
#include <cstdint>
#include <string>

#include "../../csrc/cuda/emulator/simt.h"
#include "ddsm/activation_cuda.h"
#include "ddsm/attention_cuda.h"
#include "ddsm/conv2d_cuda.h"
#include "ddsm/group_norm_cuda.h"
#include "ddsm/layer_norm_cuda.h"
#include "ddsm/linear_fused_cuda.h"
#include "ddsm/resample_cuda.h"
#include "ddsm/sinusoidal_embedding_cuda.h"

extern "C" {

void allow_memory(const void* data, uint64_t bytes, int writable) {
  ddsm::simt::allow_memory(data, bytes, writable != 0);
}
void forget_memory() { ddsm::simt::forget_memory(); }
void set_hopper(int hopper) { ddsm::simt::set_hopper(hopper != 0); }
void set_multiprocessors(int count) { ddsm::simt::set_multiprocessors(count); }
void want_kernels(int wanted) { ddsm::simt::want_kernels(wanted != 0); }
// The launches since the last call: "name blocks x blocks_y x threads", a line each; what overlaps
// the kernel before it ends with "+".
const char* take_launches() {
  static std::string text;
  text.clear();
  for (const auto& launch : ddsm::simt::launches()) {
    text += launch.name + " " + std::to_string(launch.grid.x) + "x" +
            std::to_string(launch.grid.y) + "x" + std::to_string(launch.threads) +
            (launch.overlaps ? "+\n" : "\n");
  }
  ddsm::simt::launches().clear();
  return text.c_str();
}

#define DDSM_ENTRY(op, Args)                                                           \
  int64_t op##_bytes(const ddsm::Args* args) {                                         \
    return ddsm::op##_cuda_workspace_bytes(*args);                                     \
  }                                                                                    \
  const char* op(const ddsm::Args* args) { return ddsm::op##_cuda(*args, nullptr); }   \
  int64_t op##_args_bytes() { return sizeof(ddsm::Args); }

DDSM_ENTRY(conv2d_forward, Conv2dCudaForwardArgs)
DDSM_ENTRY(conv2d_grad_x, Conv2dCudaGradXArgs)
DDSM_ENTRY(conv2d_grad_weight, Conv2dCudaGradWeightArgs)
DDSM_ENTRY(activation_backward, ActivationCudaArgs)

int64_t activation_bytes(const ddsm::ActivationCudaArgs*) { return 0; }
int64_t activation_args_bytes() { return sizeof(ddsm::ActivationCudaArgs); }
const char* activation(const ddsm::ActivationCudaArgs* args) {
  return ddsm::activation_cuda(*args, nullptr);
}

int64_t linear_fused_bytes(const ddsm::LinearFusedCudaArgs*) { return 0; }
int64_t linear_fused_args_bytes() { return sizeof(ddsm::LinearFusedCudaArgs); }
const char* linear_fused(const ddsm::LinearFusedCudaArgs* args) {
  return ddsm::linear_fused_cuda(*args, nullptr);
}
int64_t sinusoidal_embedding_bytes(const ddsm::SinusoidalCudaArgs*) { return 0; }
int64_t sinusoidal_embedding_args_bytes() { return sizeof(ddsm::SinusoidalCudaArgs); }
const char* sinusoidal_embedding(const ddsm::SinusoidalCudaArgs* args) {
  return ddsm::sinusoidal_embedding_cuda(*args, nullptr);
}
int64_t resample_bytes(const ddsm::ResampleArgs*) { return 0; }
int64_t resample_args_bytes() { return sizeof(ddsm::ResampleArgs); }
const char* resample(const ddsm::ResampleArgs* args, int overlaps) {
  return ddsm::resample_cuda(*args, overlaps != 0, nullptr);
}
int conv2d_moment_classes(const ddsm::Conv2dCudaForwardArgs* args) {
  return static_cast<int>(ddsm::conv2d_forward_cuda_moment_classes(*args));
}

int64_t group_norm_forward_bytes(const ddsm::GroupNormArgs* args) {
  return ddsm::group_norm_cuda_scratch_bytes(*args);
}
int64_t group_norm_backward_bytes(const ddsm::GroupNormArgs* args) {
  return ddsm::group_norm_cuda_scratch_bytes(*args);
}
int64_t group_norm_forward_args_bytes() { return sizeof(ddsm::GroupNormArgs); }
int64_t group_norm_backward_args_bytes() { return sizeof(ddsm::GroupNormArgs); }
const char* group_norm_forward(const ddsm::GroupNormArgs* args,
                               const ddsm::GroupNormMoments* moments, int64_t down_width,
                               int overlaps) {
  return ddsm::group_norm_forward_cuda(*args, moments, down_width, overlaps != 0, nullptr);
}
const char* group_norm_backward(const ddsm::GroupNormArgs* args) {
  return ddsm::group_norm_backward_cuda(*args, nullptr);
}

int64_t layer_norm_forward_bytes(const ddsm::LayerNormArgs*) { return 0; }
int64_t layer_norm_backward_bytes(const ddsm::LayerNormArgs* args) {
  return ddsm::layer_norm_cuda_scratch_bytes(*args);
}
int64_t layer_norm_forward_args_bytes() { return sizeof(ddsm::LayerNormArgs); }
int64_t layer_norm_backward_args_bytes() { return sizeof(ddsm::LayerNormArgs); }
const char* layer_norm_forward(const ddsm::LayerNormArgs* args, int overlaps) {
  return ddsm::layer_norm_forward_cuda(*args, overlaps != 0, nullptr);
}
const char* layer_norm_backward(const ddsm::LayerNormArgs* args) {
  return ddsm::layer_norm_backward_cuda(*args, nullptr);
}

int64_t attention_forward_bytes(const ddsm::AttentionArgs*) { return 0; }
int64_t attention_backward_bytes(const ddsm::AttentionArgs* args) {
  return ddsm::attention_backward_cuda_scratch_bytes(*args);
}
int64_t attention_forward_args_bytes() { return sizeof(ddsm::AttentionArgs); }
int64_t attention_backward_args_bytes() { return sizeof(ddsm::AttentionArgs); }
const char* attention_forward(const ddsm::AttentionArgs* args) {
  return ddsm::attention_forward_cuda(*args, nullptr);
}
const char* attention_backward(const ddsm::AttentionArgs* args) {
  return ddsm::attention_backward_cuda(*args, nullptr);
}

}  // extern "C"
