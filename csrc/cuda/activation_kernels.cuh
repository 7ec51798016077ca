// The kernels of sliced_activation.
//
//   activation            a thread for V columns of a row
//   activation_grad       (image, strip of its rows, columns): grad_z, and of a wanted gradient of
//                         the gate the strip's sums
//   activation_grad_gate  (image, column): adds the sums, in the order of the strips
#pragma once

#include "activation.cuh"
#include "index_maps.h"
#include "packs.cuh"

namespace ddsm {

constexpr int kActivationThreads = 256;
// The most packs of V columns that a block of activation_grad has beside each other.
constexpr int32_t kMostGradPacks = 32;
// Rows that a thread of it takes.
constexpr int32_t kGradRows = 4;

template <class T>
struct ActivationParams {
  const T *z, *gate, *residual, *grad_y;  // null where ddsm/activation_cuda.h says so
  T *y, *grad_z;
  float *grad_gate, *partial;  // partial: [images, strips, columns]
  int64_t z_stride, gate_stride, residual_stride, grad_y_stride;
  Activation activation;
  int32_t images, columns;
  Divider packs, rows;  // packs of a row of y; rows of an image
  // of activation_grad
  int32_t block_packs, strip_rows;  // block_packs: a power of 2
  Divider tiles, strips;            // blocks along a row; strips of an image
};

template <class T, int V, bool kGeglu>
DDSM_KERNEL(kActivationThreads, 4)
activation_kernel(const ActivationParams<T> p) {
  const int64_t index = int64_t(ptx::block_index()) * kActivationThreads + ptx::thread_index();
  const int64_t rows = int64_t(p.images) * p.rows.divisor;
  if (index >= rows * p.packs.divisor) return;
  const int32_t row = p.packs.quotient(static_cast<int32_t>(index));
  const int32_t column = static_cast<int32_t>(index - int64_t(row) * p.packs.divisor) * V;
  const T* z = p.z + row * p.z_stride + column;
  float value[V];
  widen<T>(load<T, V>(z), value);
  if constexpr (kGeglu) {
    float gate_half[V];
    widen<T>(load<T, V>(z + p.columns), gate_half);
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] *= gelu(gate_half[i]);
  } else {
    activate(p.activation, value);
  }
  if (p.gate) {
    float gate[V];
    widen<T>(load<T, V>(p.gate + p.rows.quotient(row) * p.gate_stride + column), gate);
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] *= gate[i];
  }
  if (p.residual) {
    float residual[V];
    widen<T>(load<T, V>(p.residual + row * p.residual_stride + column), residual);
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] += residual[i];
  }
  store<T, V>(p.y + int64_t(row) * p.columns + column, narrow<T>(value));
}

// grad_z of V columns of a row, stored; adds to `sum` the products of grad_y with the activations.
template <class T, int V, bool kGeglu>
DDSM_DEVICE void grad_of_row(const ActivationParams<T>& p, int64_t row, int32_t column,
                             const float (&gate)[V], float (&sum)[V]) {
  const T* z = p.z + row * p.z_stride + column;
  T* grad_z = p.grad_z + row * (kGeglu ? 2 : 1) * int64_t(p.columns) + column;
  float grad[V], value[V], slope[V];
  widen<T>(load<T, V>(p.grad_y + row * p.grad_y_stride + column), grad);
  widen<T>(load<T, V>(z), value);
  if constexpr (kGeglu) {
    float gate_half[V], grad_half[V];
    widen<T>(load<T, V>(z + p.columns), gate_half);
    activate(Activation::kGelu, gate_half, slope);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      sum[i] = fmaf(grad[i], value[i] * gate_half[i], sum[i]);
      grad[i] *= gate[i];
      grad_half[i] = grad[i] * value[i] * slope[i];
      grad[i] *= gate_half[i];
    }
    store<T, V>(grad_z + p.columns, narrow<T>(grad_half));
  } else {
    activate(p.activation, value, slope);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      sum[i] = fmaf(grad[i], value[i], sum[i]);
      grad[i] *= gate[i] * slope[i];
    }
  }
  store<T, V>(grad_z, narrow<T>(grad));
}

// Adds what the threads of each column have found, in the order of their rows.
template <class T, int V>
DDSM_DEVICE void store_strip_sums(const ActivationParams<T>& p, int32_t image_strip,
                                  int32_t first_column, const float (&sum)[V]) {
  const int thread = static_cast<int>(ptx::thread_index());
#pragma unroll
  for (int i = 0; i < V; ++i) ptx::store_shared((thread * V + i) * 4, sum[i]);
  ptx::sync_threads();
  const int columns = p.block_packs * V;
  if (thread >= columns || first_column + thread >= p.columns) return;
  float total = 0;
  for (int place = thread; place < kActivationThreads * V; place += columns) {
    total += ptx::load_shared<float>(place * 4);
  }
  ptx::store_global(p.partial + int64_t(image_strip) * p.columns + first_column + thread, total);
}

template <class T, int V, bool kGeglu>
DDSM_KERNEL(kActivationThreads, 3)
activation_grad_kernel(const ActivationParams<T> p) {
  const auto block = static_cast<int32_t>(ptx::block_index());
  const int32_t image_strip = p.tiles.quotient(block);
  const int32_t tile = block - image_strip * static_cast<int32_t>(p.tiles.divisor);
  const int32_t image = p.strips.quotient(image_strip);
  const int32_t strip = image_strip - image * static_cast<int32_t>(p.strips.divisor);
  const auto thread = static_cast<int32_t>(ptx::thread_index());
  const int32_t first_column = tile * p.block_packs * V;
  const int32_t column = first_column + (thread & (p.block_packs - 1)) * V;
  const auto rows = static_cast<int32_t>(p.rows.divisor);
  const int32_t end = (strip + 1) * p.strip_rows < rows ? (strip + 1) * p.strip_rows : rows;
  float gate[V], sum[V] = {};
#pragma unroll
  for (int i = 0; i < V; ++i) gate[i] = 1;
  if (column < p.columns) {
    if (p.gate) widen<T>(load<T, V>(p.gate + image * p.gate_stride + column), gate);
    for (int32_t row = strip * p.strip_rows + thread / p.block_packs; row < end;
         row += kActivationThreads / p.block_packs) {
      grad_of_row<T, V, kGeglu>(p, int64_t(image) * rows + row, column, gate, sum);
    }
  }
  if (p.grad_gate) store_strip_sums<T>(p, image_strip, first_column, sum);
}

template <class T>
DDSM_KERNEL(kActivationThreads, 4)
activation_grad_gate_kernel(const ActivationParams<T> p) {
  const int64_t index = int64_t(ptx::block_index()) * kActivationThreads + ptx::thread_index();
  if (index >= int64_t(p.images) * p.columns) return;
  const int64_t image = index / p.columns, column = index - image * p.columns;
  const float* partial = p.partial + image * p.strips.divisor * p.columns + column;
  float total = 0;
  for (uint32_t strip = 0; strip < p.strips.divisor; ++strip, partial += p.columns) {
    total += ptx::load_global(partial);
  }
  ptx::store_global(p.grad_gate + index, total);
}

}  // namespace ddsm
