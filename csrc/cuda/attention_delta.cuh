// delta = rowsum(grad_out * out), which the gradient of a softmax subtracts: a warp a row.
#pragma once

#include "attention_params.h"
#include "launch.cuh"

namespace ddsm {

constexpr int kDeltaThreads = 128;

template <class T, int V>
DDSM_DEVICE float dot_of_lane(const T* a, const T* b, int32_t count) {
  float sum = 0;
#pragma unroll 2
  for (int32_t i = static_cast<int32_t>(ptx::thread_index() % 32) * V; i < count; i += 32 * V) {
    const auto x = ptx::load_global(reinterpret_cast<const Pack<T, V>*>(a + i));
    const auto y = ptx::load_global(reinterpret_cast<const Pack<T, V>*>(b + i));
#pragma unroll
    for (int v = 0; v < V; ++v) sum += to_float(x.lane[v]) * to_float(y.lane[v]);
  }
  return sum;
}

template <class T>
DDSM_DEVICE const T* row_of_head(const AttentionView& view, int64_t head, int32_t heads,
                                 int64_t t) {
  return static_cast<const T*>(view.data) + head / heads * view.n_stride +
         head % heads * view.head_stride + t * view.t_stride;
}

// V: elements of a load; more than one where rows are aligned and whole numbers of them.
template <class T, int V>
DDSM_KERNEL(kDeltaThreads, 1)
attention_delta_kernel(const AttentionDeltaParams p) {
  const int64_t row =
      int64_t(ptx::block_index()) * (kDeltaThreads / 32) + ptx::thread_index() / 32;
  if (row >= p.rows) return;
  const int64_t head = row / p.t, t = row % p.t;
  float sum = dot_of_lane<T, V>(row_of_head<T>(p.grad_out, head, p.heads, t),
                                row_of_head<T>(p.out, head, p.heads, t), p.d);
  const int lane = static_cast<int>(ptx::thread_index() % 32);
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += ptx::shuffle(sum, lane ^ distance);
  if (lane == 0) ptx::store_global(p.delta + row, sum);
}

template <class T>
const char* launch_attention_delta(const AttentionDeltaParams& p, void* stream) {
  constexpr int V = 16 / sizeof(T);
  const bool vector = p.grad_out.vector && p.out.vector && p.d % V == 0;
  const int64_t rows_a_block = kDeltaThreads / 32;
  const LaunchShape shape{(p.rows + rows_a_block - 1) / rows_a_block, 1, kDeltaThreads, 0};
  auto* kernel = vector ? attention_delta_kernel<T, V> : attention_delta_kernel<T, 1>;
  return launch("attention_delta", kernel, shape, stream, p);
}

}  // namespace ddsm
