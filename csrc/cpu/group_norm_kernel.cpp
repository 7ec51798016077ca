// Group norm with fused SiLU, forward and backward, for NHWC sources.
//
// Forward: per block of 64 pixels and channel, sum and sum of squares of the deviations from the
// mean of the block's first pixels (that is near the mean, so the squares cannot cancel badly);
// blocks, then the channels of a group, are merged in double by Chan's formula; a second pass
// applies.
// Backward: per channel S1 = sum du and S2 = sum du * xhat with du = dL/du recomputed from x,
// u = xhat * gamma + beta; then dbeta = S1, dgamma = S2 and
//   dx = rstd * (gamma * du - mean_g(gamma * du) - xhat * mean_g(gamma * du * xhat)).
// All sums run in a fixed order: results depend neither on threads nor on scheduling.
#include "ddsm/group_norm.h"

#include "group_norm_layout.h"
#include "lanes.h"
#include "norm_strips.h"

namespace ddsm::DDSM_ISA {
namespace {

// Elements below which a part of the work is not worth another thread.
constexpr int64_t kGrainElements = 16384;

template <class T>
struct GroupNorm {
  using C = Compute<T>;
  using V = Vec<C>;
  static constexpr int64_t kLanes = Lanes<C>::kCount;

  const GroupNormArgs& args;
  const GroupNormLayout layout;

  explicit GroupNorm(const GroupNormArgs& a) : args(a), layout(group_norm_layout(a)) {}

  double* partials(int64_t n, int64_t block) const {
    return reinterpret_cast<double*>(static_cast<char*>(args.scratch) + layout.partials) +
           (n * layout.blocks + block) * 2 * layout.channels;
  }
  double* sums(int64_t n) const {
    return reinterpret_cast<double*>(static_cast<char*>(args.scratch) + layout.sums) +
           n * 2 * layout.channels;
  }
  C* coefficient(int64_t n, int which) const {
    return reinterpret_cast<C*>(static_cast<char*>(args.scratch) + layout.coefficients) +
           (n * kCoefCount + which) * layout.channels;
  }
  int64_t block_rows(int64_t block) const {
    const int64_t left = args.pixels - block * kGroupNormBlockPixels;
    return left < kGroupNormBlockPixels ? left : kGroupNormBlockPixels;
  }
  double param(const void* values, int64_t index) const {
    if (args.param_dtype == DType::kFloat64) return static_cast<const double*>(values)[index];
    if (args.param_dtype == DType::kFloat32) return static_cast<const float*>(values)[index];
    return to_compute(static_cast<const Bf16*>(values)[index]);
  }
  void add_to_param(void* values, int64_t index, double x) const {
    if (args.param_dtype == DType::kFloat64) {
      static_cast<double*>(values)[index] += x;
    } else if (args.param_dtype == DType::kFloat32) {
      float* out = static_cast<float*>(values) + index;
      *out = static_cast<float>(*out + x);
    } else {
      Bf16* out = static_cast<Bf16*>(values) + index;
      from_compute(static_cast<float>(to_compute(*out) + x), out);
    }
  }

  // ---- forward ---------------------------------------------------------------------------------

  void block_moments(int64_t n, int64_t block) const {
    double* mean = partials(n, block);
    double* m2 = mean + layout.channels;
    const int64_t rows = block_rows(block);
    for (int64_t s = 0; s < args.source_count; ++s) {
      const GroupNormSource& source = args.sources[s];
      const int64_t stride = source.x_pixel_stride;
      const T* x = static_cast<const T*>(source.x) +
                   (n * args.pixels + block * kGroupNormBlockPixels) * stride;
      row_moments(x, stride, rows, source.c, mean, m2);
      mean += source.c;
      m2 += source.c;
    }
  }

  // Merges the blocks of an image channel by channel, into sums(n) = (mean, M2).
  void merge_blocks(int64_t n) const {
    const int64_t channels = layout.channels;
    double* mean = sums(n);
    double* m2 = mean + channels;
    const double pixels = static_cast<double>(args.pixels);
    for (int64_t c = 0; c < channels; ++c) mean[c] = m2[c] = 0;
    for (int64_t b = 0; b < layout.blocks; ++b) {
      const double* part = partials(n, b);
      const double share = block_rows(b) / pixels;
      for (int64_t c = 0; c < channels; ++c) mean[c] += share * part[c];
    }
    for (int64_t b = 0; b < layout.blocks; ++b) {
      const double* part = partials(n, b);
      const double rows = static_cast<double>(block_rows(b));
      for (int64_t c = 0; c < channels; ++c) {
        const double d = part[c] - mean[c];
        m2[c] += part[channels + c] + rows * d * d;
      }
    }
  }

  // Statistics of the groups, and the coefficients that the apply pass reads.
  void merge(int64_t n) const {
    merge_blocks(n);
    const double* channel_mean = sums(n);
    const double* channel_m2 = channel_mean + layout.channels;
    const int64_t size = layout.channels / args.groups;
    C* mean_out = static_cast<C*>(args.mean) + n * args.groups;
    C* rstd_out = static_cast<C*>(args.rstd) + n * args.groups;
    for (int64_t g = 0; g < args.groups; ++g) {
      double mean = 0, m2 = 0;
      for (int64_t c = g * size; c < (g + 1) * size; ++c) mean += channel_mean[c];
      mean /= size;
      for (int64_t c = g * size; c < (g + 1) * size; ++c) {
        const double d = channel_mean[c] - mean;
        m2 += channel_m2[c] + args.pixels * d * d;
      }
      const double rstd = 1 / __builtin_sqrt(m2 / (size * args.pixels) + args.eps);
      mean_out[g] = static_cast<C>(mean);
      rstd_out[g] = static_cast<C>(rstd);
    }
    fill_coefficients(n);
  }

  void fill_coefficients(int64_t n) const {
    const C* mean = static_cast<const C*>(args.mean) + n * args.groups;
    const C* rstd = static_cast<const C*>(args.rstd) + n * args.groups;
    const int64_t size = layout.channels / args.groups;
    int64_t c = 0;
    for (int64_t s = 0; s < args.source_count; ++s) {
      for (int64_t i = 0; i < args.sources[s].c; ++i, ++c) {
        const int64_t g = c / size;
        const double gamma = param(args.weight, args.sources[s].param_offset + i);
        const double beta = param(args.bias, args.sources[s].param_offset + i);
        coefficient(n, kCoefMean)[c] = mean[g];
        coefficient(n, kCoefRstd)[c] = rstd[g];
        coefficient(n, kCoefGamma)[c] = static_cast<C>(gamma);
        coefficient(n, kCoefScale)[c] = static_cast<C>(rstd[g] * gamma);
        coefficient(n, kCoefBeta)[c] = static_cast<C>(beta);
      }
    }
  }

  template <bool Silu>
  void apply(int64_t n, int64_t block) const {
    const C* mean = coefficient(n, kCoefMean);
    const C* scale = coefficient(n, kCoefScale);
    const C* beta = coefficient(n, kCoefBeta);
    const int64_t first = n * args.pixels + block * kGroupNormBlockPixels;
    const int64_t rows = block_rows(block);
    for (int64_t s = 0; s < args.source_count; ++s) {
      const GroupNormSource& source = args.sources[s];
      for (int64_t r = first; r < first + rows; ++r) {
        const T* x = static_cast<const T*>(source.x) + r * source.x_pixel_stride;
        T* y = static_cast<T*>(source.y) + r * source.c;
        apply_row<Silu>(x, mean, scale, beta, source.c, y);
      }
      mean += source.c;
      scale += source.c;
      beta += source.c;
    }
  }

  // ---- backward --------------------------------------------------------------------------------

  // du = dL/du in place of dL/dy.
  template <bool Silu, int Count>
  static void grad_u(const V (&xhat)[Count], const V (&gamma)[Count], const V (&beta)[Count],
                     V (&du)[Count]) {
    if constexpr (Silu) {
      V u[Count], e[Count];
      for (int v = 0; v < Count; ++v) u[v] = xhat[v] * gamma[v] + beta[v];
      for (int v = 0; v < Count; ++v) e[v] = -u[v];
      exp(e);
      for (int v = 0; v < Count; ++v) e[v] = 1 / (1 + e[v]);
      for (int v = 0; v < Count; ++v) du[v] *= e[v] * (1 + u[v] * (1 - e[v]));
    }
  }

  // S1 and S2 of `rows` pixels, for Count vectors of channels.
  template <bool Silu, int Count>
  void strip_sums(int64_t n, const T* x, int64_t stride, const T* dy, int64_t dy_stride,
                  int64_t rows, int64_t channel, int64_t lanes, double* s1_out,
                  double* s2_out) const {
    V mean[Count], rstd[Count], gamma[Count], beta[Count], s1[Count] = {}, s2[Count] = {};
    load_strip(coefficient(n, kCoefMean) + channel, lanes, mean);
    load_strip(coefficient(n, kCoefRstd) + channel, lanes, rstd);
    load_strip(coefficient(n, kCoefGamma) + channel, lanes, gamma);
    load_strip(coefficient(n, kCoefBeta) + channel, lanes, beta);
    for (int64_t r = 0; r < rows; ++r) {
      V xhat[Count], du[Count];
      load_strip(x + r * stride, lanes, xhat);
      load_strip(dy + r * dy_stride, lanes, du);
      for (int v = 0; v < Count; ++v) xhat[v] = (xhat[v] - mean[v]) * rstd[v];
      grad_u<Silu>(xhat, gamma, beta, du);
      for (int v = 0; v < Count; ++v) {
        s1[v] += du[v];
        s2[v] += du[v] * xhat[v];
      }
    }
    for (int v = 0; v < Count; ++v) {
      for (int64_t i = 0; i < lanes; ++i) {
        s1_out[v * kLanes + i] = s1[v][i];
        s2_out[v * kLanes + i] = s2[v][i];
      }
    }
  }

  template <bool Silu>
  void block_sums(int64_t n, int64_t block) const {
    double* s1 = partials(n, block);
    double* s2 = s1 + layout.channels;
    const int64_t first = n * args.pixels + block * kGroupNormBlockPixels;
    const int64_t rows = block_rows(block);
    int64_t channel = 0;
    for (int64_t s = 0; s < args.source_count; ++s) {
      const GroupNormSource& source = args.sources[s];
      const int64_t stride = source.x_pixel_stride, dy_stride = source.grad_y_pixel_stride;
      const T* x = static_cast<const T*>(source.x) + first * stride;
      const T* dy = static_cast<const T*>(source.grad_y) + first * dy_stride;
      if (source.c < kLanes) {
        strip_sums<Silu, 1>(n, x, stride, dy, dy_stride, rows, channel, source.c, s1 + channel,
                            s2 + channel);
      } else {
        for_each_strip<2, C>(source.c, [&](auto count, int64_t i) {
          const int64_t at = channel + i;
          strip_sums<Silu, count.kValue>(n, x + i, stride, dy + i, dy_stride, rows, at, kLanes,
                                         s1 + at, s2 + at);
        });
      }
      channel += source.c;
    }
  }

  // Sums of the image into sums(n), and the groups' terms of dx into the coefficients.
  void merge_sums(int64_t n) const {
    const int64_t channels = layout.channels, size = channels / args.groups;
    double* s1 = sums(n);
    double* s2 = s1 + channels;
    for (int64_t c = 0; c < 2 * channels; ++c) s1[c] = 0;
    for (int64_t b = 0; b < layout.blocks; ++b) {
      const double* part = partials(n, b);
      for (int64_t c = 0; c < 2 * channels; ++c) s1[c] += part[c];
    }
    const C* gamma = coefficient(n, kCoefGamma);
    const C* rstd = coefficient(n, kCoefRstd);
    C* grad_mean = coefficient(n, kCoefGradMean);
    C* grad_slope = coefficient(n, kCoefGradSlope);
    for (int64_t g = 0; g < args.groups; ++g) {
      double a = 0, b = 0;
      for (int64_t c = g * size; c < (g + 1) * size; ++c) {
        a += s1[c] * gamma[c];
        b += s2[c] * gamma[c];
      }
      const double factor = static_cast<double>(rstd[g * size]) / (size * args.pixels);
      for (int64_t c = g * size; c < (g + 1) * size; ++c) {
        grad_mean[c] = static_cast<C>(a * factor);
        grad_slope[c] = static_cast<C>(b * factor);
      }
    }
  }

  // coef: kCoefCount rows of [channels], at the strip's first channel.
  template <bool Silu, int Count>
  static void apply_grad_strip(const T* x, const T* dy, const C* coef, int64_t channels,
                               int64_t lanes, T* dx) {
    V xhat[Count], du[Count], a[Count], b[Count];
    load_strip(x, lanes, xhat);
    load_strip(coef + kCoefMean * channels, lanes, a);
    load_strip(coef + kCoefRstd * channels, lanes, b);
    for (int v = 0; v < Count; ++v) xhat[v] = (xhat[v] - a[v]) * b[v];
    load_strip(dy, lanes, du);
    load_strip(coef + kCoefGamma * channels, lanes, a);
    load_strip(coef + kCoefBeta * channels, lanes, b);
    grad_u<Silu>(xhat, a, b, du);
    load_strip(coef + kCoefGradMean * channels, lanes, a);
    load_strip(coef + kCoefGradSlope * channels, lanes, b);
    for (int v = 0; v < Count; ++v) xhat[v] = a[v] + xhat[v] * b[v];
    load_strip(coef + kCoefScale * channels, lanes, a);
    for (int v = 0; v < Count; ++v) du[v] = a[v] * du[v] - xhat[v];
    store_strip(dx, lanes, du);
  }

  template <bool Silu>
  void apply_grad(int64_t n, int64_t block) const {
    const int64_t first = n * args.pixels + block * kGroupNormBlockPixels;
    const int64_t rows = block_rows(block), channels = layout.channels;
    const C* coef = coefficient(n, 0);
    for (int64_t s = 0; s < args.source_count; ++s, coef += args.sources[0].c) {
      const GroupNormSource& source = args.sources[s];
      for (int64_t r = first; r < first + rows; ++r) {
        const T* x = static_cast<const T*>(source.x) + r * source.x_pixel_stride;
        const T* dy = static_cast<const T*>(source.grad_y) + r * source.grad_y_pixel_stride;
        T* dx = static_cast<T*>(source.grad_x) + r * source.c;
        if (source.c < kLanes) {
          apply_grad_strip<Silu, 1>(x, dy, coef, channels, source.c, dx);
          continue;
        }
        for_each_strip<2, C>(source.c, [&](auto count, int64_t i) {
          apply_grad_strip<Silu, count.kValue>(x + i, dy + i, coef + i, channels, kLanes, dx + i);
        });
      }
    }
  }

  void add_param_grads() const {
    int64_t channel = 0;
    for (int64_t s = 0; s < args.source_count; ++s) {
      for (int64_t i = 0; i < args.sources[s].c; ++i, ++channel) {
        double beta = 0, gamma = 0;
        for (int64_t n = 0; n < args.n; ++n) {
          beta += sums(n)[channel];
          gamma += sums(n)[layout.channels + channel];
        }
        const int64_t index = args.sources[s].param_offset + i;
        if (args.grad_bias) add_to_param(args.grad_bias, index, beta);
        if (args.grad_weight) add_to_param(args.grad_weight, index, gamma);
      }
    }
  }

  // ---- schedule --------------------------------------------------------------------------------

  // reduce(n, block) for all blocks, then merge(n), then finish(n, block). Whole images a thread
  // where there are enough (their second pass finds them in the cache), else blocks.
  template <class Reduce, class Merge, class Finish>
  void run(const Reduce& reduce, const Merge& merge, const Finish& finish) const {
    const int64_t blocks = layout.blocks, threads = num_threads();
    const int64_t image_grain = kGrainElements / (args.pixels * layout.channels) + 1;
    if (threads == 1 || args.n % threads == 0 || args.n >= 4 * threads) {
      parallel_for(0, args.n, image_grain, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          for (int64_t b = 0; b < blocks; ++b) reduce(n, b);
          merge(n);
          for (int64_t b = 0; b < blocks; ++b) finish(n, b);
        }
      });
      return;
    }
    const int64_t grain = kGrainElements / (kGroupNormBlockPixels * layout.channels) + 1;
    parallel_for(0, args.n * blocks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) reduce(i / blocks, i % blocks);
    });
    for (int64_t n = 0; n < args.n; ++n) merge(n);
    parallel_for(0, args.n * blocks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) finish(i / blocks, i % blocks);
    });
  }

  template <bool Silu>
  void forward() const {
    run([&](int64_t n, int64_t b) { block_moments(n, b); }, [&](int64_t n) { merge(n); },
        [&](int64_t n, int64_t b) { apply<Silu>(n, b); });
  }

  template <bool Silu>
  void backward() const {
    for (int64_t n = 0; n < args.n; ++n) fill_coefficients(n);
    run([&](int64_t n, int64_t b) { block_sums<Silu>(n, b); }, [&](int64_t n) { merge_sums(n); },
        [&](int64_t n, int64_t b) { apply_grad<Silu>(n, b); });
    if (args.grad_weight || args.grad_bias) add_param_grads();
  }
};

template <class T>
void forward(const GroupNormArgs& args) {
  args.silu ? GroupNorm<T>(args).template forward<true>()
            : GroupNorm<T>(args).template forward<false>();
}

template <class T>
void backward(const GroupNormArgs& args) {
  args.silu ? GroupNorm<T>(args).template backward<true>()
            : GroupNorm<T>(args).template backward<false>();
}

}  // namespace

void group_norm_forward(const GroupNormArgs& args) {
  if (args.dtype == DType::kFloat64) forward<double>(args);
  else if (args.dtype == DType::kBFloat16) forward<Bf16>(args);
  else forward<float>(args);
}

void group_norm_backward(const GroupNormArgs& args) {
  if (args.dtype == DType::kFloat64) backward<double>(args);
  else if (args.dtype == DType::kBFloat16) backward<Bf16>(args);
  else backward<float>(args);
}

}  // namespace ddsm::DDSM_ISA
