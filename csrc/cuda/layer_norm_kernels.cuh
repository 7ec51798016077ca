// The kernels of sliced_layer_norm.
//
//   layer_norm             (row)              statistics; y
//   layer_norm_grad        (row)              dL/dx
//   layer_norm_grad_sums   (32 rows)          sums of dL/dy and dL/dy * xhat of each channel
//   layer_norm_grad_params (8 channels)       dL/dgamma and dL/dbeta
//   layer_norm_grad_modulation (image, 8 channels)  dL/dscale and dL/dshift
//
// A warp, or of narrow rows an equal part of one, has a row. Each of its lanes takes every
// `lanes`-th pack of V channels (16 bytes; V = 1 where memory is not aligned) and keeps up to kHeld
// of them in registers; kHeld = 0: rows that may be longer are read again for every pass.
#pragma once

#include <cstdint>

#include "index_maps.h"
#include "packs.cuh"

namespace ddsm {

constexpr int kLayerNormThreads = 128, kLayerNormSumThreads = 256;
constexpr int kPartRows = 32;    // rows that a thread of layer_norm_grad_sums adds up
constexpr int kSumChannels = 8;  // of a block that merges sums, 64 bytes side by side

// Two sums of a channel.
struct alignas(8) ChannelSums {
  float grad, slope;  // of dL/dy and of dL/dy * xhat
};

template <class T>
struct LayerNormParams {
  const T *x, *grad_y;
  T* out;  // y or grad_x
  int64_t x_run_stride, x_row_stride, grad_run_stride, grad_row_stride;
  const void *weight, *bias;  // of float if wide_params, else of T; null: 1 and 0
  const T *scale, *shift;     // null: none
  int64_t modulation_stride;  // between images
  float *mean, *rstd;         // [images, rows]; null: not wanted
  ChannelSums* sums;          // [images, parts, c]
  void *grad_weight, *grad_bias;  // as weight and bias; null: not wanted
  T *grad_scale, *grad_shift;     // dense; null: not wanted
  double eps;
  float inverse_c;
  int32_t c, all_rows, lanes;  // all_rows: of all images; lanes: that share a row, a power of 2
  int32_t images, sum_items;   // sum_items: threads that layer_norm_grad_sums needs
  Divider rows, parts;  // of an image
  Divider run, packs;   // rows of a run, packs of a row
  bool wide_params;
};

// Row `row` of all images.
template <class T>
DDSM_DEVICE const T* row_at(const LayerNormParams<T>& p, const T* data, int64_t run_stride,
                            int64_t row_stride, int32_t row) {
  const int32_t run = p.run.quotient(row);
  return data + run * run_stride + (row - run * static_cast<int32_t>(p.run.divisor)) * row_stride;
}
template <class T>
DDSM_DEVICE const T* x_row(const LayerNormParams<T>& p, int32_t row) {
  return row_at(p, p.x, p.x_run_stride, p.x_row_stride, row);
}
template <class T>
DDSM_DEVICE const T* grad_y_row(const LayerNormParams<T>& p, int32_t row) {
  return row_at(p, p.grad_y, p.grad_run_stride, p.grad_row_stride, row);
}

// The row of a thread and its place among those that share it. A row that is not there has no
// channels, but its lanes take part in the warp's sums.
struct RowPlace {
  int32_t row, image, lane, c;

  template <class T>
  static DDSM_DEVICE RowPlace of(const LayerNormParams<T>& p) {
    const auto thread = static_cast<int32_t>(ptx::thread_index());
    const int64_t first = int64_t(ptx::block_index()) * (kLayerNormThreads / p.lanes);
    const int64_t row = first + thread / p.lanes;
    const bool there = row < p.all_rows;
    const int32_t index = there ? static_cast<int32_t>(row) : 0;
    return {index, p.rows.quotient(index), thread % p.lanes, there ? p.c : 0};
  }
};

// The packs of a thread in the same row of kCount tensors.
template <class T, int V, int kHeld, int kCount>
struct LanePacks {
  const T* rows[kCount];
  int32_t first, step, c;
  Row<T, V> held[kCount][kHeld > 0 ? kHeld : 1];

  DDSM_DEVICE LanePacks(const T* const (&of)[kCount], const RowPlace& place, int32_t lanes)
      : first(place.lane * V), step(lanes * V), c(place.c) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) rows[i] = of[i];
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        if (first + k * step >= c) continue;
#pragma unroll
        for (int i = 0; i < kCount; ++i) held[i][k] = load<T, V>(rows[i] + first + k * step);
      }
    }
  }

  // Calls body(first channel, values of each tensor) for each pack.
  template <class Body>
  DDSM_DEVICE void for_each(const Body& body) const {
    float values[kCount][V];
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        if (first + k * step >= c) continue;
#pragma unroll
        for (int i = 0; i < kCount; ++i) widen<T>(held[i][k], values[i]);
        body(first + k * step, values);
      }
    } else {
      for (int32_t channel = first; channel < c; channel += step) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) widen<T>(load<T, V>(rows[i] + channel), values[i]);
        body(channel, values);
      }
    }
  }
};

// The sum over the lanes of a row, the same in each of them.
DDSM_DEVICE float sum_of_row(float value, int32_t lanes) {
  const int lane = static_cast<int>(ptx::thread_index() % 32);
  for (int32_t distance = lanes / 2; distance > 0; distance /= 2) {
    value += ptx::shuffle(value, lane ^ distance);
  }
  return value;
}

// V adjacent numbers, with 16 bytes a load.
template <int V, class T>
DDSM_DEVICE void load_values(const T* data, float (&out)[V]) {
  constexpr int kPack = V * sizeof(T) > 16 ? 16 / sizeof(T) : V;
#pragma unroll
  for (int i = 0; i < V; i += kPack) {
    float part[kPack];
    widen<T>(load<T, kPack>(data + i), part);
#pragma unroll
    for (int j = 0; j < kPack; ++j) out[i + j] = part[j];
  }
}

template <int V, class T>
DDSM_DEVICE void load_params(const LayerNormParams<T>& p, const void* of, int32_t channel,
                             float (&out)[V]) {
  if (p.wide_params) load_values(static_cast<const float*>(of) + channel, out);
  else load_values(static_cast<const T*>(of) + channel, out);
}

// What V normalised channels of an image are multiplied by, and what is added to the product.
template <int V>
struct LayerNormAffine {
  float gamma[V], beta[V];

  template <class T>
  DDSM_DEVICE LayerNormAffine(const LayerNormParams<T>& p, int32_t image, int32_t channel) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      gamma[i] = 1.0f;
      beta[i] = 0.0f;
    }
    if (p.weight) {
      load_params(p, p.weight, channel, gamma);
      load_params(p, p.bias, channel, beta);
    }
    if (p.scale) {
      const int64_t at = image * p.modulation_stride + channel;
      float scale[V], shift[V];
      load_values(p.scale + at, scale);
      load_values(p.shift + at, shift);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        gamma[i] *= 1.0f + scale[i];
        beta[i] = fmaf(beta[i], 1.0f + scale[i], shift[i]);
      }
    }
  }
};

template <class T, int V, int kHeld>
DDSM_KERNEL(kLayerNormThreads, 4)
layer_norm_kernel(const LayerNormParams<T> p) {
  ptx::wait_for_kernel_before();
  ptx::allow_kernel_after();
  const RowPlace place = RowPlace::of(p);
  const LanePacks<T, V, kHeld, 1> packs({x_row(p, place.row)}, place, p.lanes);
  float sum = 0.0f;
  packs.for_each([&](int32_t, const float (&values)[1][V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) sum += values[0][i];
  });
  // The deviations' own mean corrects the mean and their squares.
  const float near = sum_of_row(sum, p.lanes) * p.inverse_c;
  float rest = 0.0f, squares = 0.0f;
  packs.for_each([&](int32_t, const float (&values)[1][V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float d = values[0][i] - near;
      rest += d;
      squares = fmaf(d, d, squares);
    }
  });
  rest = sum_of_row(rest, p.lanes);
  const float delta = rest * p.inverse_c, mean = near + delta;
  const float m2 = sum_of_row(squares, p.lanes) - rest * delta;
  const double variance = double(m2 > 0 || m2 != m2 ? m2 : 0.0f) * p.inverse_c;
  const auto rstd = static_cast<float>(ptx::reciprocal_sqrt(variance + p.eps));
  T* y = p.out + int64_t(place.row) * p.c;
  packs.for_each([&](int32_t channel, const float (&values)[1][V]) {
    const LayerNormAffine<V> affine(p, place.image, channel);
    float out[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      out[i] = fmaf((values[0][i] - mean) * rstd, affine.gamma[i], affine.beta[i]);
    }
    store<T, V>(y + channel, narrow<T>(out));
  });
  if (p.mean && place.lane == 0 && place.c > 0) {
    ptx::store_global(p.mean + place.row, mean);
    ptx::store_global(p.rstd + place.row, rstd);
  }
}

// ---- Backward ----------------------------------------------------------------------------------
// With g = gamma * dL/dy, gamma modulated, and means over a row's channels
//   dL/dx = rstd * (g - mean(g) - xhat * mean(g * xhat)).
template <class T, int V, int kHeld>
DDSM_KERNEL(kLayerNormThreads, 4)
layer_norm_grad_kernel(const LayerNormParams<T> p) {
  const RowPlace place = RowPlace::of(p);
  const LanePacks<T, V, kHeld, 2> packs({x_row(p, place.row), grad_y_row(p, place.row)}, place,
                                        p.lanes);
  const float mean = ptx::load_global(p.mean + place.row);
  const float rstd = ptx::load_global(p.rstd + place.row);
  float sum = 0.0f, slope = 0.0f;
  packs.for_each([&](int32_t channel, const float (&values)[2][V]) {
    const LayerNormAffine<V> affine(p, place.image, channel);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float g = values[1][i] * affine.gamma[i];
      sum += g;
      slope = fmaf(g, (values[0][i] - mean) * rstd, slope);
    }
  });
  sum = sum_of_row(sum, p.lanes) * p.inverse_c;
  slope = sum_of_row(slope, p.lanes) * p.inverse_c;
  T* grad_x = p.out + int64_t(place.row) * p.c;
  packs.for_each([&](int32_t channel, const float (&values)[2][V]) {
    const LayerNormAffine<V> affine(p, place.image, channel);
    float out[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float xhat = (values[0][i] - mean) * rstd;
      out[i] = (fmaf(-xhat, slope, values[1][i] * affine.gamma[i]) - sum) * rstd;
    }
    store<T, V>(grad_x + channel, narrow<T>(out));
  });
}

// A thread has V channels of kPartRows rows of an image.
template <class T, int V>
DDSM_KERNEL(kLayerNormSumThreads, 2)
layer_norm_grad_sums_kernel(const LayerNormParams<T> p) {
  const int64_t index = int64_t(ptx::block_index()) * kLayerNormSumThreads + ptx::thread_index();
  if (index >= p.sum_items) return;
  const auto item = static_cast<int32_t>(index);
  const int32_t part = p.packs.quotient(item), image = p.parts.quotient(part);
  const int32_t channel = (item - part * static_cast<int32_t>(p.packs.divisor)) * V;
  const int32_t first = (part - image * static_cast<int32_t>(p.parts.divisor)) * kPartRows;
  const auto rows = static_cast<int32_t>(p.rows.divisor);
  const int32_t begin = image * rows + first;
  const int32_t count = rows - first < kPartRows ? rows - first : kPartRows;
  ChannelSums sums[V] = {};
#pragma unroll 4
  for (int32_t row = begin; row < begin + count; ++row) {
    float values[V], grad[V];
    widen<T>(load<T, V>(x_row(p, row) + channel), values);
    widen<T>(load<T, V>(grad_y_row(p, row) + channel), grad);
    const float mean = ptx::load_global(p.mean + row), rstd = ptx::load_global(p.rstd + row);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      sums[i].grad += grad[i];
      sums[i].slope = fmaf(grad[i], (values[i] - mean) * rstd, sums[i].slope);
    }
  }
  ChannelSums* to = p.sums + int64_t(part) * p.c + channel;
  constexpr int kPack = V > 1 ? 2 : 1;
#pragma unroll
  for (int i = 0; i < V; i += kPack) {
    Pack<ChannelSums, kPack> pack;
#pragma unroll
    for (int j = 0; j < kPack; ++j) pack.lane[j] = sums[i + j];
    ptx::store_global(reinterpret_cast<Pack<ChannelSums, kPack>*>(to + i), pack);
  }
}

// A block's channels, and a thread's place among those that share one.
struct MergePlace {
  int32_t channel, row;

  static DDSM_DEVICE MergePlace of(unsigned block) {
    const auto thread = static_cast<int32_t>(ptx::thread_index());
    return {static_cast<int32_t>(block) * kSumChannels + thread % kSumChannels,
            thread / kSumChannels};
  }
};

// The sums of each channel over parts [first, last) of those of all images, each times
// factor(part), for the threads of the first row.
template <class T, class Factor>
DDSM_DEVICE ChannelSums merge_parts(const LayerNormParams<T>& p, const MergePlace& place,
                                    int32_t first, int32_t last, const Factor& factor) {
  constexpr int32_t kRows = kLayerNormSumThreads / kSumChannels;
  ChannelSums sum{};
  if (place.channel < p.c) {
#pragma unroll 4
    for (int32_t r = first + place.row; r < last; r += kRows) {
      const ChannelSums part = ptx::load_global(p.sums + int64_t(r) * p.c + place.channel);
      const float times = factor(r);
      sum.grad = fmaf(times, part.grad, sum.grad);
      sum.slope = fmaf(times, part.slope, sum.slope);
    }
  }
  // Threads side by side, 8 bytes each: no two of half a warp meet in a bank.
  const uint32_t thread = ptx::thread_index();
  ptx::store_shared(thread * uint32_t(sizeof(ChannelSums)), sum);
  ptx::sync_threads();
  if (place.row != 0) return sum;
  for (uint32_t r = 1; r < kRows; ++r) {
    const uint32_t from = (r * kSumChannels + thread) * uint32_t(sizeof(ChannelSums));
    const auto other = ptx::load_shared<ChannelSums>(from);
    sum.grad += other.grad;
    sum.slope += other.slope;
  }
  return sum;
}

template <class T>
DDSM_DEVICE float load_param(const LayerNormParams<T>& p, const void* of, int32_t channel) {
  float value[1];
  load_params(p, of, channel, value);
  return value[0];
}

template <class T>
DDSM_DEVICE void add_to_param(const LayerNormParams<T>& p, void* of, int32_t channel, float value) {
  if (!of) return;
  const float sum = load_param(p, of, channel) + value;
  if (p.wide_params) {
    ptx::store_global(static_cast<float*>(of) + channel, sum);
  } else {
    T rounded;
    from_float(sum, &rounded);
    ptx::store_global(static_cast<T*>(of) + channel, rounded);
  }
}

// 1 + scale.
template <class T>
DDSM_DEVICE float factor_of(const LayerNormParams<T>& p, int32_t image, int32_t channel) {
  return 1.0f + to_float(ptx::load_global(p.scale + image * p.modulation_stride + channel));
}

// Adds the sums over all images to the gradients of gamma and beta.
template <class T>
DDSM_KERNEL(kLayerNormSumThreads, 1)
layer_norm_grad_params_kernel(const LayerNormParams<T> p) {
  const MergePlace place = MergePlace::of(ptx::block_index());
  const int32_t parts = p.images * static_cast<int32_t>(p.parts.divisor);
  const ChannelSums sum = merge_parts(p, place, 0, parts, [&](int32_t part) {
    return p.scale ? factor_of(p, p.parts.quotient(part), place.channel) : 1.0f;
  });
  if (place.row != 0 || place.channel >= p.c) return;
  add_to_param(p, p.grad_bias, place.channel, sum.grad);
  add_to_param(p, p.grad_weight, place.channel, sum.slope);
}

// Gradients of scale and shift of one image's channels.
template <class T>
DDSM_KERNEL(kLayerNormSumThreads, 1)
layer_norm_grad_modulation_kernel(const LayerNormParams<T> p) {
  const unsigned blocks = (p.c + kSumChannels - 1) / kSumChannels;
  const unsigned image = ptx::block_index() / blocks;
  const MergePlace place = MergePlace::of(ptx::block_index() - image * blocks);
  const auto parts = static_cast<int32_t>(p.parts.divisor);
  const int32_t first = static_cast<int32_t>(image) * parts;
  const ChannelSums sum =
      merge_parts(p, place, first, first + parts, [](int32_t) { return 1.0f; });
  if (place.row != 0 || place.channel >= p.c) return;
  const int64_t at = int64_t(image) * p.c + place.channel;
  T rounded;
  if (p.grad_shift) {
    from_float(sum.grad, &rounded);
    ptx::store_global(p.grad_shift + at, rounded);
  }
  if (p.grad_scale) {
    const float gamma = p.weight ? load_param(p, p.weight, place.channel) : 1.0f;
    const float beta = p.weight ? load_param(p, p.bias, place.channel) : 0.0f;
    from_float(fmaf(gamma, sum.slope, beta * sum.grad), &rounded);
    ptx::store_global(p.grad_scale + at, rounded);
  }
}

}  // namespace ddsm
