// sliced_layer_norm for ranges of its work: a few rows at a time, which stay in the first-level
// cache for as many passes as they need.
//
// Forward: the mean, then squares of deviations from it; the deviations' own mean corrects both.
// Backward, with g = gamma * dL/dy and means over a row's channels:
//   dx = rstd * (g - mean(g) - xhat * mean(g * xhat))
// Of each channel S1 = sum dy and S2 = sum dy * xhat over an image's rows: dshift = S1,
// dscale = own gamma * S2 + own beta * S1, and (1 + scale) times S1 and S2 are added to dbeta and
// dgamma. All sums run in a fixed order: results depend neither on threads nor on scheduling.
#include "ddsm/layer_norm.h"

#include "lanes.h"
#include "layer_norm_layout.h"
#include "norm_affine.h"

namespace ddsm::DDSM_ISA {
namespace {

// Channels whose sums are merged at a time.
constexpr int64_t kMergeChannels = 64;
// Vectors of a row whose float sums are taken by themselves, so that these stay short.
constexpr int64_t kSumVectors = 16;

// A vector of a row's channels.
template <class C>
struct Whole {
  using V = Vec<C>;

  template <class T>
  V load(const T* p) const {
    return DDSM_ISA::load(p);
  }
  template <class T>
  void store(T* p, V v) const {
    DDSM_ISA::store(p, v);
  }
  V only(V v) const { return v; }
};

// The last one, of which fewer lanes are channels; the others read as 0.
template <class C>
struct Rest {
  using V = Vec<C>;
  using Int = typename Lanes<C>::Int;

  int64_t lanes;
  Int mask;

  explicit Rest(int64_t count) : lanes(count) {
    for (int i = 0; i < Lanes<C>::kCount; ++i) mask[i] = i < count ? -1 : 0;
  }

  template <class T>
  V load(const T* p) const {
    return load_first(p, lanes);
  }
  template <class T>
  void store(T* p, V v) const {
    store_first(p, v, lanes);
  }
  V only(V v) const { return (V)((Int)v & mask); }
};

// Calls body(vector, channel) for the vectors of channels [begin, end).
template <class C, class Body>
inline void for_each_vector(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + Lanes<C>::kCount <= end; i += Lanes<C>::kCount) body(Whole<C>{}, i);
  if (i < end) body(Rest<C>(end - i), i);
}

// Several sums over a row's channels: add(vector, channel, sums of each lane).
template <class C, int Sums, class Add>
inline void sum_channels(int64_t channels, const Add& add, double (&sums)[Sums]) {
  constexpr int64_t kChunk = kSumVectors * Lanes<C>::kCount;
  Vec<C> total[Sums] = {};
  for (int64_t from = 0; from < channels; from += kChunk) {
    Vec<C> part[Sums] = {};
    for_each_vector<C>(from, smaller(channels, from + kChunk),
                       [&](auto vector, int64_t i) { add(vector, i, part); });
    for (int k = 0; k < Sums; ++k) total[k] += part[k];
  }
  for (int k = 0; k < Sums; ++k) sums[k] = sum_of<C>(total[k]);
}

// Calls body(Number<rows>, first row) so that [begin, end) is covered.
template <class Body>
inline void for_each_group(int64_t begin, int64_t end, const Body& body) {
  int64_t row = begin;
  for (; row + kLayerNormRows <= end; row += kLayerNormRows) body(Number<kLayerNormRows>{}, row);
  for (; row < end; ++row) body(Number<1>{}, row);
}

template <class T>
struct LayerNorm {
  using C = Compute<T>;
  using V = Vec<C>;

  const LayerNormArgs& args;
  const int64_t channels;

  explicit LayerNorm(const LayerNormArgs& a) : args(a), channels(a.channels) {}

  C* affine(int64_t n) const { return static_cast<C*>(args.scratch) + n * 2 * channels; }
  C* sums(int64_t n, int64_t block) const {
    const LayerNormLayout layout = layer_norm_layout(args);
    return reinterpret_cast<C*>(static_cast<char*>(args.scratch) + layout.sums) +
           (n * layout.blocks + block) * 2 * channels;
  }

  const T* x_row(int64_t n, int64_t row) const {
    return static_cast<const T*>(args.x) + n * args.x_image_stride + row * args.x_row_stride;
  }
  const T* grad_y_row(int64_t n, int64_t row) const {
    return static_cast<const T*>(args.grad_y) + n * args.grad_y_image_stride +
           row * args.grad_y_row_stride;
  }
  T* out_row(void* out, int64_t n, int64_t row) const {
    return static_cast<T*>(out) + (n * args.rows + row) * channels;
  }

  NormAffine own_affine(int64_t c) const {
    if (!args.weight) return {1, 0};
    return {value_at(args.weight, args.param_dtype, c), value_at(args.bias, args.param_dtype, c)};
  }
  double modulation(const void* of, int64_t n, int64_t c) const {
    return of ? value_at(of, args.modulation_dtype, n * args.modulation_stride + c) : 0;
  }

  // gamma and beta of image n with its scale and shift in them.
  void fill_affine(int64_t n) const {
    for (int64_t c = 0; c < channels; ++c) {
      const NormAffine whole =
          own_affine(c).modulated(modulation(args.scale, n, c), modulation(args.shift, n, c));
      affine(n)[c] = static_cast<C>(whole.gamma);
      affine(n)[channels + c] = static_cast<C>(whole.beta);
    }
  }

  // ---- forward ---------------------------------------------------------------------------------

  template <int Rows>
  void moments(const T* const (&x)[Rows], C (&mean)[Rows], C (&rstd)[Rows]) const {
    double first[Rows], second[2 * Rows];
    sum_channels<C>(channels, [&](auto vector, int64_t i, V (&sum)[Rows]) {
      for (int r = 0; r < Rows; ++r) sum[r] += vector.load(x[r] + i);
    }, first);
    for (int r = 0; r < Rows; ++r) mean[r] = static_cast<C>(first[r] / channels);
    sum_channels<C>(channels, [&](auto vector, int64_t i, V (&sum)[2 * Rows]) {
      for (int r = 0; r < Rows; ++r) {
        const V d = vector.only(vector.load(x[r] + i) - mean[r]);
        sum[r] += d;
        sum[Rows + r] += d * d;
      }
    }, second);
    for (int r = 0; r < Rows; ++r) {
      const double delta = second[r] / channels, m2 = second[Rows + r] - second[r] * delta;
      const double variance = (m2 > 0 || m2 != m2 ? m2 : 0) / channels;
      mean[r] = static_cast<C>(mean[r] + delta);
      rstd[r] = static_cast<C>(1 / __builtin_sqrt(variance + args.eps));
    }
  }

  // Rows [row, row + Rows) of image n.
  template <bool Affine, int Rows>
  void normalise(int64_t n, int64_t row) const {
    const T* x[Rows];
    T* y[Rows];
    for (int r = 0; r < Rows; ++r) {
      x[r] = x_row(n, row + r);
      y[r] = out_row(args.y, n, row + r);
    }
    C mean[Rows], rstd[Rows];
    moments(x, mean, rstd);
    const C* gamma = affine(n);
    for_each_vector<C>(0, channels, [&](auto vector, int64_t i) {
      V scale, beta;
      if constexpr (Affine) {
        scale = vector.load(gamma + i);
        beta = vector.load(gamma + channels + i);
      }
      for (int r = 0; r < Rows; ++r) {
        // x - mean first: x * scale + shift would lose the digits that a large mean has in common.
        V v = (vector.load(x[r] + i) - mean[r]) * rstd[r];
        if constexpr (Affine) v = v * scale + beta;
        vector.store(y[r] + i, v);
      }
    });
    const int64_t at = n * args.rows + row;
    for (int r = 0; r < Rows; ++r) {
      if (args.mean) static_cast<C*>(args.mean)[at + r] = mean[r];
      if (args.rstd) static_cast<C*>(args.rstd)[at + r] = rstd[r];
    }
  }

  // Groups [begin, end) of kLayerNormRows rows of all images.
  template <bool Affine>
  void forward(int64_t begin, int64_t end) const {
    const int64_t groups = ceil_div(args.rows, kLayerNormRows);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / groups, first = (i - n * groups) * kLayerNormRows;
      for_each_group(first, smaller(first + kLayerNormRows, args.rows),
                     [&](auto rows, int64_t row) { normalise<Affine, rows.kValue>(n, row); });
    }
  }

  // ---- backward --------------------------------------------------------------------------------

  // Rows [row, row + Rows) of image n; their sums over rows are added to s1 and s2, if wanted.
  template <bool Affine, int Rows>
  void grad_rows(int64_t n, int64_t row, C* s1, C* s2) const {
    const T *x[Rows], *dy[Rows];
    T* dx[Rows];
    C mean[Rows], rstd[Rows], g_mean[Rows], g_slope[Rows];
    for (int r = 0; r < Rows; ++r) {
      x[r] = x_row(n, row + r);
      dy[r] = grad_y_row(n, row + r);
      dx[r] = out_row(args.grad_x, n, row + r);
      mean[r] = static_cast<const C*>(args.mean)[n * args.rows + row + r];
      rstd[r] = static_cast<const C*>(args.rstd)[n * args.rows + row + r];
    }
    const C* gamma = affine(n);
    const auto scaled = [&](const auto& vector, V grad, int64_t i) {
      if constexpr (Affine) return grad * vector.load(gamma + i);
      return grad;
    };
    double found[2 * Rows];
    sum_channels<C>(channels, [&](auto vector, int64_t i, V (&sum)[2 * Rows]) {
      for (int r = 0; r < Rows; ++r) {
        const V g = scaled(vector, vector.load(dy[r] + i), i);
        sum[r] += g;
        sum[Rows + r] += g * ((vector.load(x[r] + i) - mean[r]) * rstd[r]);
      }
    }, found);
    for (int r = 0; r < Rows; ++r) {
      g_mean[r] = static_cast<C>(found[r] / channels);
      g_slope[r] = static_cast<C>(found[Rows + r] / channels);
    }
    for_each_vector<C>(0, channels, [&](auto vector, int64_t i) {
      V sum1 = {}, sum2 = {};
      for (int r = 0; r < Rows; ++r) {
        const V grad = vector.load(dy[r] + i);
        const V xhat = (vector.load(x[r] + i) - mean[r]) * rstd[r];
        vector.store(dx[r] + i,
                     (scaled(vector, grad, i) - g_mean[r] - xhat * g_slope[r]) * rstd[r]);
        sum1 += grad;
        sum2 += grad * xhat;
      }
      if (!s1) return;
      vector.store(s1 + i, vector.load(s1 + i) + sum1);
      vector.store(s2 + i, vector.load(s2 + i) + sum2);
    });
  }

  // Blocks [begin, end) of those of all images.
  template <bool Affine>
  void backward(int64_t begin, int64_t end) const {
    const int64_t blocks = ceil_div(args.rows, kLayerNormBlockRows);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / blocks, block = i - n * blocks, first = block * kLayerNormBlockRows;
      C* s1 = args.wants_sums() ? sums(n, block) : nullptr;
      C* s2 = s1 ? s1 + channels : nullptr;
      if (s1) __builtin_memset(s1, 0, 2 * channels * sizeof(C));
      for_each_group(first, smaller(first + kLayerNormBlockRows, args.rows),
                     [&](auto rows, int64_t row) { grad_rows<Affine, rows.kValue>(n, row, s1, s2); });
    }
  }

  // Sums over the blocks of image n for `count` channels from `first` on.
  void merge_blocks(int64_t n, int64_t first, int64_t count, double* s1, double* s2) const {
    for (int64_t c = 0; c < count; ++c) s1[c] = s2[c] = 0;
    const int64_t blocks = ceil_div(args.rows, kLayerNormBlockRows);
    for (int64_t b = 0; b < blocks; ++b) {
      const C* part = sums(n, b) + first;
      for (int64_t c = 0; c < count; ++c) {
        s1[c] += part[c];
        s2[c] += part[channels + c];
      }
    }
  }

  // The gradients of the parameters and modulations of at most kMergeChannels channels.
  void merge(int64_t first, int64_t count) const {
    double beta[kMergeChannels] = {}, gamma[kMergeChannels] = {};
    for (int64_t n = 0; n < args.images; ++n) {
      double s1[kMergeChannels], s2[kMergeChannels];
      merge_blocks(n, first, count, s1, s2);
      for (int64_t c = 0; c < count; ++c) {
        const double factor = 1 + modulation(args.scale, n, first + c);
        beta[c] += factor * s1[c];
        gamma[c] += factor * s2[c];
        const NormAffine own = own_affine(first + c);
        const int64_t at = n * channels + first + c;
        const double scale = own.gamma * s2[c] + own.beta * s1[c];
        if (args.grad_scale) store_at(args.grad_scale, args.modulation_dtype, at, scale);
        if (args.grad_shift) store_at(args.grad_shift, args.modulation_dtype, at, s1[c]);
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      if (args.grad_bias) add_at(args.grad_bias, args.param_dtype, first + c, beta[c]);
      if (args.grad_weight) add_at(args.grad_weight, args.param_dtype, first + c, gamma[c]);
    }
  }
};

// run(LayerNorm of the args' type).
template <class Run>
inline void with_type(const LayerNormArgs& args, const Run& run) {
  if (args.dtype == DType::kFloat64) run(LayerNorm<double>(args));
  else if (args.dtype == DType::kBFloat16) run(LayerNorm<Bf16>(args));
  else run(LayerNorm<float>(args));
}

bool has_affine(const LayerNormArgs& args) { return args.weight || args.scale; }

}  // namespace

void layer_norm_affine(const LayerNormArgs& args, int64_t begin, int64_t end) {
  with_type(args, [&](const auto& norm) {
    for (int64_t n = begin; n < end; ++n) norm.fill_affine(n);
  });
}

void layer_norm_forward_range(const LayerNormArgs& args, int64_t begin, int64_t end) {
  with_type(args, [&](const auto& norm) {
    has_affine(args) ? norm.template forward<true>(begin, end)
                     : norm.template forward<false>(begin, end);
  });
}

void layer_norm_backward_range(const LayerNormArgs& args, int64_t begin, int64_t end) {
  with_type(args, [&](const auto& norm) {
    has_affine(args) ? norm.template backward<true>(begin, end)
                     : norm.template backward<false>(begin, end);
  });
}

void layer_norm_merge_range(const LayerNormArgs& args, int64_t begin, int64_t end) {
  with_type(args, [&](const auto& norm) {
    for (int64_t first = begin; first < end; first += kMergeChannels) {
      norm.merge(first, smaller(kMergeChannels, end - first));
    }
  });
}

}  // namespace ddsm::DDSM_ISA
