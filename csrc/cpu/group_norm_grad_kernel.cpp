// The backward of sliced_group_norm, for NHWC sources.
//
// Per channel S1 = sum du and S2 = sum du * xhat with du = dL/du recomputed from x,
// u = xhat * gamma + beta with FiLM in gamma and beta; then for the image dshift = S1,
// dscale = own gamma * S2 + own beta * S1, and it adds (1 + scale) times S1 and S2 to dbeta and
// dgamma;
//   dx = rstd * (gamma * du - mean_g(gamma * du) - xhat * mean_g(gamma * du * xhat)).
// All sums run in a fixed order: results depend neither on threads nor on scheduling.
#include "ddsm/group_norm.h"

#include "group_norm_layout.h"
#include "group_norm_strips.h"
#include "lanes.h"
#include "norm_affine.h"

namespace ddsm::DDSM_ISA {
namespace {

template <class T>
struct Backward {
  using C = Compute<T>;
  using V = Vec<C>;
  static constexpr int64_t kLanes = Lanes<C>::kCount;

  const GroupNormArgs& args;
  const GroupNormLayout layout;

  explicit Backward(const GroupNormArgs& a) : args(a), layout(group_norm_layout(a)) {}

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
    return smaller(kGroupNormBlockPixels, args.pixels - block * kGroupNormBlockPixels);
  }

  NormAffine affine(int64_t index) const {
    return {value_at(args.weight, args.param_dtype, index),
            value_at(args.bias, args.param_dtype, index)};
  }
  double scale_of(int64_t n, int64_t channel) const {
    return args.scale ? value_at(args.scale, args.dtype, n * args.modulation_stride + channel) : 0;
  }
  double shift_of(int64_t n, int64_t channel) const {
    return args.shift ? value_at(args.shift, args.dtype, n * args.modulation_stride + channel) : 0;
  }

  // Calls body(channel, index of its parameters) for all channels.
  template <class Body>
  void for_each_channel(const Body& body) const {
    int64_t channel = 0;
    for (int64_t s = 0; s < args.source_count; ++s) {
      for (int64_t i = 0; i < args.sources[s].c; ++i, ++channel) {
        body(channel, args.sources[s].param_offset + i);
      }
    }
  }

  void fill_coefficients(int64_t n) const {
    const C* mean = static_cast<const C*>(args.mean) + n * args.groups;
    const C* rstd = static_cast<const C*>(args.rstd) + n * args.groups;
    const int64_t size = layout.channels / args.groups;
    for_each_channel([&](int64_t c, int64_t index) {
      const int64_t g = c / size;
      const NormAffine whole = affine(index).modulated(scale_of(n, c), shift_of(n, c));
      coefficient(n, kCoefMean)[c] = mean[g];
      coefficient(n, kCoefRstd)[c] = rstd[g];
      coefficient(n, kCoefGamma)[c] = static_cast<C>(whole.gamma);
      coefficient(n, kCoefScale)[c] = static_cast<C>(rstd[g] * whole.gamma);
      coefficient(n, kCoefBeta)[c] = static_cast<C>(whole.beta);
    });
  }

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
    for_each_channel([&](int64_t c, int64_t index) {
      double beta = 0, gamma = 0;
      for (int64_t n = 0; n < args.n; ++n) {
        const double factor = 1 + scale_of(n, c);
        beta += factor * sums(n)[c];
        gamma += factor * sums(n)[layout.channels + c];
      }
      if (args.grad_bias) add_at(args.grad_bias, args.param_dtype, index, beta);
      if (args.grad_weight) add_at(args.grad_weight, args.param_dtype, index, gamma);
    });
  }

  void store_modulation_grads(int64_t n) const {
    const double *s1 = sums(n), *s2 = s1 + layout.channels;
    for_each_channel([&](int64_t c, int64_t index) {
      const NormAffine own = affine(index);
      const int64_t at = n * layout.channels + c;
      const double scale = own.gamma * s2[c] + own.beta * s1[c];
      if (args.grad_scale) store_at(args.grad_scale, args.dtype, at, scale);
      if (args.grad_shift) store_at(args.grad_shift, args.dtype, at, s1[c]);
    });
  }

  template <bool Silu>
  void run() const {
    for (int64_t n = 0; n < args.n; ++n) fill_coefficients(n);
    group_norm_schedule(
        args, layout, [&](int64_t n, int64_t b) { block_sums<Silu>(n, b); },
        [&](int64_t n) { merge_sums(n); }, [&](int64_t n, int64_t b) { apply_grad<Silu>(n, b); });
    if (args.grad_weight || args.grad_bias) add_param_grads();
    if (!args.grad_scale && !args.grad_shift) return;
    for (int64_t n = 0; n < args.n; ++n) store_modulation_grads(n);
  }
};

template <class T>
void backward(const GroupNormArgs& args) {
  args.silu ? Backward<T>(args).template run<true>() : Backward<T>(args).template run<false>();
}

}  // namespace

void group_norm_backward(const GroupNormArgs& args) {
  if (args.dtype == DType::kFloat64) backward<double>(args);
  else if (args.dtype == DType::kBFloat16) backward<Bf16>(args);
  else backward<float>(args);
}

}  // namespace ddsm::DDSM_ISA
