// Group norm forward: moments of the sources, and what comes of them.
#pragma once

#include "group_norm_blocks.cuh"

namespace ddsm {

// ---- Sums over a block of pixels ---------------------------------------------------------------
// The sums over the rows of a block of kSumThreads, for its first threads: thread t has that of
// channel packed_channel(t). A pack's channels lie a pitch apart and packs side by side; the pitch
// puts a second channel's 8 packs of 8 bytes into the other half of the banks.
constexpr int kPairPitch = kSumThreads + 8;

template <int V>
DDSM_DEVICE int32_t packed_channel(int32_t channels) {
  const int32_t packs = channels / V, thread = ptx::thread_index(), i = thread / packs;
  return (thread - i * packs) * V + i;
}

template <int V>
DDSM_DEVICE Pair sum_rows(const Pair (&own)[V], const RowWalk& walk, int32_t channels) {
  const int32_t packs = channels / V, thread = ptx::thread_index();
#pragma unroll
  for (int i = 0; i < V; ++i) {
    ptx::store_shared((i * kPairPitch + thread) * uint32_t(sizeof(Pair)), own[i]);
  }
  ptx::sync_threads();
  Pair sum{};
  if (thread >= channels) return sum;
  const int32_t i = thread / packs, pack = thread - i * packs;
  for (int32_t row = 0; row < walk.step; ++row) {
    const uint32_t from = (i * kPairPitch + row * packs + pack) * uint32_t(sizeof(Pair));
    const auto other = ptx::load_shared<Pair>(from);
    sum.first += other.first;
    sum.second += other.second;
  }
  return sum;
}

// Moments of each channel over blocks of kMomentPixels pixels.
template <class T, int V>
DDSM_KERNEL(kSumThreads, 1)
group_norm_moments_kernel(const NormParams<T, Moments> p) {
  constexpr int kAhead = 4;
  ptx::wait_for_kernel_before();
  const NormPlace place = NormPlace::of(p);
  const NormSource<T> source = source_of(p, place.second);
  const auto count =
      static_cast<int32_t>(moment_block_pixels(p.pixels, place.image, place.row_block));
  const int64_t pixel =
      int64_t(place.image) * p.pixels + moment_block_begin(p.pixels, place.image, place.row_block);
  const T* block = source.x + pixel * source.x_stride + place.channel;
  const RowWalk walk = RowWalk::of<V>(kSumThreads, place.channels, count);
  const T* x = block + walk.first * source.x_stride + walk.channel;
  auto load_row = [&](Row<T, V>& row, bool valid) {
    if (valid) row = load<T, V>(x);
    x += walk.step * source.x_stride;
  };
  Row<T, V> ahead[kAhead] = {};
  walk.start(ahead, load_row);
  // Deviations from the block's first pixel: data, so the squares cannot cancel badly.
  float shift[V] = {};
  if (walk.count > 0) widen<T>(load<T, V>(block + walk.channel), shift);
  Pair sums[V] = {};
  walk.run(ahead, load_row, AsItIs{}, [&](const Row<T, V>& row, bool valid) {
    float value[V];
    widen<T>(row, value);
    if (!valid) return;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float d = value[i] - shift[i];
      sums[i].first += d;
      sums[i].second = fmaf(d, d, sums[i].second);
    }
  });
  ptx::allow_kernel_after();
  const Pair sum = sum_rows<V>(sums, walk, place.channels);
  if (static_cast<int32_t>(ptx::thread_index()) >= place.channels || count == 0) return;
  const int32_t channel = packed_channel<V>(place.channels);
  const float delta = sum.first / static_cast<float>(count), m2 = sum.second - sum.first * delta;
  const NormParts<Moments> parts = parts_of(p.parts, place.second);
  const int64_t at = (int64_t(place.image) * parts.count + place.row_block) * source.c;
  ptx::store_global(parts.data + at + place.channel + channel,
                    Moments{to_float(ptx::load_global(block + channel)) + delta,
                            m2 > 0 ? m2 : 0.0f});
}

// ---- Apply -------------------------------------------------------------------------------------
// y = act(u), u = x * a + b with a = rstd * gamma and b = beta - mean * a, of modulated gamma and
// beta. b comes of a mean in double and of a as it was rounded, so that it costs no more than a
// mean rounded to float would.
template <int V>
struct Affine : Coefficients<V, 2> {
  static DDSM_DEVICE void put(int32_t channels, int32_t channel, double mean, float a, float beta) {
    Coefficients<V, 2>::put(kCoefficients, channels, channel,
                            {a, static_cast<float>(beta - mean * a)});
  }
  DDSM_DEVICE float at(int i, float x) const { return fmaf(x, this->of[0][i], this->of[1][i]); }
};

// Means and deviations of the block's groups from the moments of all their channels, by Chan's
// formula in double; the coefficients of the block's channels from them. Every block does this for
// itself; the one that has a group's first channel and an image's first rows stores its statistics.
template <int V, class T>
DDSM_DEVICE void prepare_affine(const NormParams<T, const Moments>& p, const NormPlace& place,
                                const NormSource<T>& source) {
  const int32_t thread = ptx::thread_index();
  const int32_t first = source.first_channel + place.channel;
  const GroupSpan groups = GroupSpan::of(p, first, place.channels);
  // Deviations from the mean of a group's first moments: data again.
  const auto shift_of = [&](int32_t group) {
    const int32_t channel = group * p.group_size - p.sources[0].c;
    const NormParts<const Moments> parts = parts_of(p.parts, channel >= 0);
    const int32_t c = pick(channel >= 0, p.sources[0].c, p.sources[1].c);
    const int32_t own = channel >= 0 ? channel : channel + p.sources[0].c;
    return ptx::load_global(parts.data + int64_t(place.image) * parts.count * c + own).mean;
  };
  sum_groups(groups, p.group_size,
             [&](int32_t group, int32_t channel, int32_t row, int32_t step, GroupSums& sum) {
               const float shift = shift_of(group);
               const bool second = channel >= p.sources[0].c;
               const NormParts<const Moments> parts = parts_of(p.parts, second);
               for_parts(parts, place.image, pick(second, p.sources[0].c, p.sources[1].c),
                         second ? channel - p.sources[0].c : channel, row, step,
                         [&](const Moments& moments, int32_t pixels) {
                           const double d = double(moments.mean) - shift;
                           sum.first += pixels * d;
                           sum.second += moments.m2 + pixels * d * d;
                         });
             });
  if (thread < place.channels) {
    const int32_t group = (first + thread) / p.group_size;
    const GroupSums sum = sum_of_group(groups, group);
    const double delta = sum.first * p.inverse_count;
    const double mean = shift_of(group) + delta;
    const double rest = sum.second * p.inverse_count - delta * delta;
    const auto rstd = static_cast<float>(ptx::reciprocal_sqrt((rest > 0 ? rest : 0) + p.eps));
    const auto params = Modulated::of(p, place.image, first + thread,
                                      source.param_offset + place.channel + thread);
    Affine<V>::put(place.channels, thread, mean, rstd * params.gamma, params.beta);
    if (p.mean && place.row_block == 0 && first + thread == group * p.group_size) {
      const int64_t at = int64_t(place.image) * p.groups + group;
      ptx::store_global(p.mean + at, static_cast<float>(mean));
      ptx::store_global(p.rstd + at, rstd);
    }
  }
  ptx::sync_threads();
}

template <class T, int V>
DDSM_KERNEL(kApplyThreads, 3)
group_norm_apply_kernel(const NormParams<T, const Moments> p) {
  constexpr int kAhead = 4;
  ptx::wait_for_kernel_before();
  const NormPlace place = NormPlace::of(p);
  const NormSource<T> source = source_of(p, place.second);
  const int32_t first_row = place.row_block * p.rows, left = p.pixels - first_row;
  const RowWalk walk =
      RowWalk::of<V>(kApplyThreads, place.channels, left < p.rows ? left : p.rows);
  const int64_t pixel = int64_t(place.image) * p.pixels + first_row + walk.first;
  const int32_t channel = place.channel + walk.channel;
  const T* x = source.x + pixel * source.x_stride + channel;
  auto load_row = [&](Row<T, V>& row, bool valid) {
    if (valid) row = load<T, V>(x);
    x += walk.step * source.x_stride;
  };
  // Under way while the statistics are found.
  Row<T, V> ahead[kAhead] = {};
  walk.start(ahead, load_row);
  prepare_affine<V>(p, place, source);
  ptx::allow_kernel_after();
  Affine<V> affine;
  affine.get(kCoefficients, place.channels, walk.channel);
  T* y = source.out + pixel * source.c + channel;
  const auto run = [&](const auto& act) {
    const auto affine_of = [&](const Row<T, V>& row) {
      Floats<V> u;
      widen<T>(row, u.of);
#pragma unroll
      for (int i = 0; i < V; ++i) u.of[i] = affine.at(i, u.of[i]);
      return u;
    };
    walk.run(ahead, load_row, affine_of, [&](Floats<V> u, bool valid) {
#pragma unroll
      for (int i = 0; i < V; ++i) u.of[i] = act(u.of[i]);
      const Row<T, V> out = narrow<T>(u.of);
      if (valid) store<T, V>(y, out);
      y += int64_t(walk.step) * source.c;
    });
  };
  if (p.silu) {
    run([](float u) { return silu<T>(u); });
  } else {
    run([](float u) { return u; });
  }
}

// The four pixels of a mean.
template <class T, int V>
struct FourRows {
  Row<T, V> of[4];
};

// y = mean of act(u) over 2x2 pixels: a row is a pixel of y.
template <class T, int V>
DDSM_KERNEL(kApplyThreads, 2)
group_norm_apply_down_kernel(const NormParams<T, const Moments> p) {
  constexpr int kAhead = 2;
  ptx::wait_for_kernel_before();
  const NormPlace place = NormPlace::of(p);
  const NormSource<T> source = source_of(p, place.second);
  const int32_t pixels = p.pixels / 4, first_row = place.row_block * p.rows;
  const int32_t left = pixels - first_row;
  const RowWalk walk =
      RowWalk::of<V>(kApplyThreads, place.channels, left < p.rows ? left : p.rows);
  const int32_t channel = place.channel + walk.channel;
  const T* image = source.x + int64_t(place.image) * p.pixels * source.x_stride + channel;
  const auto half_width = static_cast<int32_t>(p.half_width.divisor);
  const int64_t line = 2 * int64_t(half_width) * source.x_stride;
  int32_t row = first_row + walk.first;
  auto load_rows = [&](FourRows<T, V>& rows, bool valid) {
    if (valid) {
      // Pixel (2 i, 2 j) of the source for row i * half_width + j.
      const int64_t pixel = 2 * (row + int64_t(p.half_width.quotient(row)) * half_width);
      const T* x = image + pixel * source.x_stride;
      rows = {load<T, V>(x), load<T, V>(x + source.x_stride), load<T, V>(x + line),
              load<T, V>(x + line + source.x_stride)};
    }
    row += walk.step;
  };
  FourRows<T, V> ahead[kAhead] = {};
  walk.start(ahead, load_rows);
  prepare_affine<V>(p, place, source);
  ptx::allow_kernel_after();
  Affine<V> affine;
  affine.get(kCoefficients, place.channels, walk.channel);
  T* y = source.out + (int64_t(place.image) * pixels + first_row + walk.first) * source.c + channel;
  const auto run = [&](const auto& act) {
    const auto mean_of = [&](const FourRows<T, V>& rows) {
      Floats<V> mean{};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float u[V];
        widen<T>(rows.of[k], u);
#pragma unroll
        for (int i = 0; i < V; ++i) mean.of[i] += act(affine.at(i, u[i]));
      }
#pragma unroll
      for (int i = 0; i < V; ++i) mean.of[i] *= 0.25f;
      return mean;
    };
    walk.run(ahead, load_rows, mean_of, [&](const Floats<V>& mean, bool valid) {
      const Row<T, V> out = narrow<T>(mean.of);
      if (valid) store<T, V>(y, out);
      y += int64_t(walk.step) * source.c;
    });
  };
  if (p.silu) {
    run([](float u) { return silu<T>(u); });
  } else {
    run([](float u) { return u; });
  }
}

}  // namespace ddsm
