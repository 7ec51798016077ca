// Group norm backward. With u the input of act and du = dL/du:
//   dL/dx = rstd * (du * gamma - mean(du * gamma) - xhat * mean(du * gamma * xhat))
// the means over the group; dL/dgamma and dL/dbeta are sums of du * xhat and du. Where gamma and
// beta are modulated, gamma above is gamma * (1 + scale), and of each image's sums
//   dL/dgamma += (1 + scale) * sum(du * xhat)   dL/dscale = sum(du * xhat) * gamma + sum(du) * beta
//   dL/dbeta += (1 + scale) * sum(du)           dL/dshift = sum(du)
#pragma once

#include "group_norm_kernels.cuh"

namespace ddsm {

// dL/du from dL/dy, with y = act(u).
DDSM_DEVICE float grad_silu(float grad_y, float u) {
  const float s = sigmoid(u), grad = grad_y * s;
  return fmaf(grad, fmaf(-u, s, u), grad);
}

// What the forward pass made of a channel of the block, gamma and beta modulated.
struct NormalisedChannel {
  float mean, rstd, gamma, beta;

  template <class T, class V>
  static DDSM_DEVICE NormalisedChannel of(const NormParams<T, V>& p, const NormPlace& place,
                                          const NormSource<T>& source, int32_t channel) {
    const int32_t group = (source.first_channel + place.channel + channel) / p.group_size;
    const int64_t at = int64_t(place.image) * p.groups + group;
    const auto params = Modulated::of(p, place.image,
                                      source.first_channel + place.channel + channel,
                                      source.param_offset + place.channel + channel);
    return {ptx::load_global(p.mean + at), ptx::load_global(p.rstd + at), params.gamma,
            params.beta};
  }
};

// A row of both inputs.
template <class T, int V>
struct RowOfTwo {
  Row<T, V> x, grad_y;
};

// Loads a thread's rows of a source, from row `pixel` of all images on.
template <class T, int V>
struct TwoRows {
  const T *x, *grad_y;
  int64_t x_step, grad_step;

  DDSM_DEVICE TwoRows(const NormSource<T>& source, const RowWalk& walk, int64_t pixel,
                      int32_t channel)
      : x(source.x + pixel * source.x_stride + channel),
        grad_y(source.grad_y + pixel * source.grad_stride + channel),
        x_step(walk.step * source.x_stride),
        grad_step(walk.step * source.grad_stride) {}
  DDSM_DEVICE void operator()(RowOfTwo<T, V>& row, bool valid) {
    if (valid) row = {load<T, V>(x), load<T, V>(grad_y)};
    x += x_step;
    grad_y += grad_step;
  }
};

// Sums of du and du * xhat of each channel over blocks of kMomentPixels pixels; 0 over none.
template <class T, int V>
DDSM_KERNEL(kSumThreads, 1)
group_norm_grad_sums_kernel(const NormParams<T, Pair> p) {
  constexpr int kAhead = 2;
  constexpr uint32_t kBehindPairs = V * kPairPitch * sizeof(Pair);
  const NormPlace place = NormPlace::of(p);
  const NormSource<T> source = source_of(p, place.second);
  const auto count =
      static_cast<int32_t>(moment_block_pixels(p.pixels, place.image, place.row_block));
  const RowWalk walk = RowWalk::of<V>(kSumThreads, place.channels, count);
  const int64_t pixel = int64_t(place.image) * p.pixels +
                        moment_block_begin(p.pixels, place.image, place.row_block) + walk.first;
  TwoRows<T, V> rows(source, walk, pixel, place.channel + walk.channel);
  RowOfTwo<T, V> ahead[kAhead] = {};
  walk.start(ahead, rows);
  const int32_t thread = ptx::thread_index();
  float rstd = 0;  // of the thread's channel of the result
  if (thread < place.channels) {
    const auto channel = NormalisedChannel::of(p, place, source, thread);
    Coefficients<V, 3>::put(kBehindPairs, place.channels, thread,
                            {channel.mean, channel.rstd * channel.gamma, channel.beta});
    rstd = NormalisedChannel::of(p, place, source, packed_channel<V>(place.channels)).rstd;
  }
  ptx::sync_threads();
  Coefficients<V, 3> affine;
  affine.get(kBehindPairs, place.channels, walk.channel);
  Pair sums[V] = {};
  walk.run(ahead, rows, AsItIs{}, [&](const RowOfTwo<T, V>& row, bool valid) {
    float x[V], grad[V];
    widen<T>(row.x, x);
    widen<T>(row.grad_y, grad);
    if (!valid) return;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float d = x[i] - affine.of[0][i];
      const float u = fmaf(d, affine.of[1][i], affine.of[2][i]);
      const float du = p.silu ? grad_silu(grad[i], u) : grad[i];
      sums[i].first += du;
      sums[i].second = fmaf(du, d, sums[i].second);
    }
  });
  Pair sum = sum_rows<V>(sums, walk, place.channels);
  if (thread >= place.channels) return;
  sum.second *= rstd;
  const NormParts<Pair> parts = parts_of(p.parts, place.second);
  const int64_t at = (int64_t(place.image) * parts.count + place.row_block) * source.c;
  ptx::store_global(parts.data + at + place.channel + packed_channel<V>(place.channels), sum);
}

// ---- Gradients of the parameters ---------------------------------------------------------------
constexpr int kParamLanes = 8;  // channels of a block, 64 bytes of sums side by side

template <class T>
DDSM_DEVICE void add_to_param(const NormParams<T, Pair>& p, void* data, int64_t index,
                              float value) {
  if (!data) return;
  const float sum = load_param(p, data, index) + value;
  if (p.wide_params) {
    ptx::store_global(static_cast<float*>(data) + index, sum);
  } else {
    T rounded;
    from_float(sum, &rounded);
    ptx::store_global(static_cast<T*>(data) + index, rounded);
  }
}

// A block's channels of one source, and a thread's among them.
template <class T>
struct ParamPlace {
  NormSource<T> source;
  NormParts<Pair> parts;
  int32_t row, channel;

  // block: of the blocks of both sources' channels.
  static DDSM_DEVICE ParamPlace of(const NormParams<T, Pair>& p, unsigned block) {
    const auto first = static_cast<unsigned>((p.sources[0].c + kParamLanes - 1) / kParamLanes);
    const bool second = block >= first;
    const int32_t thread = ptx::thread_index();
    const auto own = static_cast<int32_t>(second ? block - first : block);
    return {source_of(p, second), parts_of(p.parts, second), thread / kParamLanes,
            own * kParamLanes + thread % kParamLanes};
  }
};

// The sums of each channel over the parts first, ..., last - 1 of all images', each times
// factor(part), for the threads of the first row.
template <class T, class Factor>
DDSM_DEVICE Pair sum_parts(const ParamPlace<T>& place, int64_t first, int64_t last,
                           const Factor& factor) {
  constexpr int32_t kRows = kApplyThreads / kParamLanes;
  const int32_t thread = ptx::thread_index();
  Pair sum{};
  if (place.channel < place.source.c) {
#pragma unroll 4
    for (int64_t r = first + place.row; r < last; r += kRows) {
      const Pair part = ptx::load_global(place.parts.data + r * place.source.c + place.channel);
      const float times = factor(static_cast<int32_t>(r));
      sum.first = fmaf(times, part.first, sum.first);
      sum.second = fmaf(times, part.second, sum.second);
    }
  }
  // Threads side by side, 8 bytes each: no two of half a warp meet in a bank.
  ptx::store_shared(thread * uint32_t(sizeof(Pair)), sum);
  ptx::sync_threads();
  if (place.row != 0) return sum;
  for (int32_t r = 1; r < kRows; ++r) {
    const auto other =
        ptx::load_shared<Pair>((r * kParamLanes + thread) * uint32_t(sizeof(Pair)));
    sum.first += other.first;
    sum.second += other.second;
  }
  return sum;
}

// Adds the sums over all images to the gradients of gamma and beta.
template <class T>
DDSM_KERNEL(kApplyThreads, 1)
group_norm_grad_params_kernel(const NormParams<T, Pair> p) {
  const auto place = ParamPlace<T>::of(p, ptx::block_index());
  const int64_t rows = int64_t(p.n) * place.parts.count;
  const int32_t channel = place.source.first_channel + place.channel;
  // An image's parts are its blocks: backward there are no classes.
  const Pair sum =
      p.scale ? sum_parts(place, 0, rows,
                          [&](int32_t r) {
                            return scale_of(p, place.parts.blocks.quotient(r), channel);
                          })
              : sum_parts(place, 0, rows, [](int32_t) { return 1.0f; });
  if (place.row != 0 || place.channel >= place.source.c) return;
  const int64_t param = place.source.param_offset + place.channel;
  add_to_param(p, p.grad_bias, param, sum.first);
  add_to_param(p, p.grad_weight, param, sum.second);
}

// Gradients of scale and shift of one image's channels.
template <class T>
DDSM_KERNEL(kApplyThreads, 1)
group_norm_grad_modulation_kernel(const NormParams<T, Pair> p) {
  const unsigned blocks = (p.sources[0].c + kParamLanes - 1) / kParamLanes +
                          (p.sources[1].c + kParamLanes - 1) / kParamLanes;
  const unsigned image = ptx::block_index() / blocks;
  const auto place = ParamPlace<T>::of(p, ptx::block_index() - image * blocks);
  const int64_t first = int64_t(image) * place.parts.count;
  const Pair sum =
      sum_parts(place, first, first + place.parts.count, [](int32_t) { return 1.0f; });
  if (place.row != 0 || place.channel >= place.source.c) return;
  const int64_t param = place.source.param_offset + place.channel;
  const int64_t at = int64_t(image) * (p.sources[0].c + p.sources[1].c) +
                     place.source.first_channel + place.channel;
  T rounded;
  if (p.grad_shift) {
    from_float(sum.first, &rounded);
    ptx::store_global(p.grad_shift + at, rounded);
  }
  if (p.grad_scale) {
    from_float(fmaf(load_param(p, p.weight, param), sum.second,
                    load_param(p, p.bias, param) * sum.first),
               &rounded);
    ptx::store_global(p.grad_scale + at, rounded);
  }
}

// ---- Gradients of the sources ------------------------------------------------------------------
// dL/dx = du * a + x * slope + offset, with u = x * a + b; see Affine.
template <int V>
struct GradAffine : Coefficients<V, 4> {
  // means: of du * gamma and du * gamma * xhat over the group.
  static DDSM_DEVICE void put(int32_t channels, int32_t channel, const NormalisedChannel& c,
                              const GroupSums& means) {
    const float a = c.rstd * c.gamma;
    const auto slope = static_cast<float>(-means.second * c.rstd * c.rstd);
    const double mean = c.mean;
    Coefficients<V, 4>::put(kCoefficients, channels, channel,
                            {a, static_cast<float>(c.beta - mean * a), slope,
                             static_cast<float>(-means.first * c.rstd - mean * slope)});
  }
  DDSM_DEVICE float grad_x(int i, float x, float grad_y, bool silu) const {
    const float a = this->of[0][i];
    const float du = silu ? grad_silu(grad_y, fmaf(x, a, this->of[1][i])) : grad_y;
    return fmaf(du, a, fmaf(x, this->of[2][i], this->of[3][i]));
  }
};

// Means over the block's groups from the sums of all their channels, in double, and the
// coefficients of the block's channels.
template <int V, class T>
DDSM_DEVICE void prepare_grad(const NormParams<T, Pair>& p, const NormPlace& place,
                              const NormSource<T>& source) {
  const int32_t thread = ptx::thread_index();
  const int32_t first = source.first_channel + place.channel;
  const GroupSpan groups = GroupSpan::of(p, first, place.channels);
  sum_groups(groups, p.group_size,
             [&](int32_t, int32_t channel, int32_t row, int32_t step, GroupSums& sum) {
               const bool second = channel >= p.sources[0].c;
               const int32_t own = second ? channel - p.sources[0].c : channel;
               const int32_t offset =
                   pick(second, p.sources[0].param_offset, p.sources[1].param_offset);
               double gamma = load_param(p, p.weight, int64_t(offset) + own);
               if (p.scale) gamma *= scale_of(p, place.image, channel);
               for_parts(parts_of(p.parts, second), place.image,
                         pick(second, p.sources[0].c, p.sources[1].c), own, row, step,
                         [&](const Pair& part, int32_t) {
                           sum.first += gamma * part.first;
                           sum.second += gamma * part.second;
                         });
             });
  if (thread < place.channels) {
    GroupSums means = sum_of_group(groups, (first + thread) / p.group_size);
    means.first *= p.inverse_count;
    means.second *= p.inverse_count;
    GradAffine<V>::put(place.channels, thread,
                          NormalisedChannel::of(p, place, source, thread), means);
  }
  ptx::sync_threads();
}

template <class T, int V>
DDSM_KERNEL(kApplyThreads, 2)
group_norm_grad_apply_kernel(const NormParams<T, Pair> p) {
  constexpr int kAhead = 2;
  const NormPlace place = NormPlace::of(p);
  const NormSource<T> source = source_of(p, place.second);
  const int32_t first_row = place.row_block * p.rows, left = p.pixels - first_row;
  const RowWalk walk =
      RowWalk::of<V>(kApplyThreads, place.channels, left < p.rows ? left : p.rows);
  const int64_t pixel = int64_t(place.image) * p.pixels + first_row + walk.first;
  const int32_t channel = place.channel + walk.channel;
  TwoRows<T, V> rows(source, walk, pixel, channel);
  RowOfTwo<T, V> ahead[kAhead] = {};
  walk.start(ahead, rows);
  prepare_grad<V>(p, place, source);
  GradAffine<V> affine;
  affine.get(kCoefficients, place.channels, walk.channel);
  T* grad_x = source.out + pixel * source.c + channel;
  const auto run = [&](bool silu) {
    walk.run(ahead, rows, AsItIs{}, [&](const RowOfTwo<T, V>& row, bool valid) {
      float x[V], grad_y[V];
      widen<T>(row.x, x);
      widen<T>(row.grad_y, grad_y);
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] = affine.grad_x(i, x[i], grad_y[i], silu);
      const Row<T, V> out = narrow<T>(x);
      if (valid) store<T, V>(grad_x, out);
      grad_x += int64_t(walk.step) * source.c;
    });
  };
  if (p.silu) {
    run(true);
  } else {
    run(false);
  }
}

}  // namespace ddsm
