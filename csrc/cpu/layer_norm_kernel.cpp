// sliced_layer_norm for ranges of its work, row by row: a row stays in the first-level cache for as
// many passes as it needs.
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
// Vectors of a row whose float sums are taken by themselves, so that these stay short, and how many
// strands of them run side by side.
constexpr int64_t kSumVectors = 64;
constexpr int kStrands = 4;

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

// Several sums over a row's channels: add(vector, channel, the lanes' sums). Adjacent vectors go to
// other strands, which need not wait for each other.
template <class C, int Sums, class Add>
inline void sum_channels(int64_t channels, const Add& add, double (&sums)[Sums]) {
  constexpr int64_t kLanes = Lanes<C>::kCount, kChunk = kSumVectors * kLanes;
  Vec<C> total[Sums] = {};
  for (int64_t from = 0; from < channels; from += kChunk) {
    const int64_t to = smaller(from + kChunk, channels);
    Vec<C> part[kStrands][Sums] = {};
    int64_t i = from;
    for (; i + kStrands * kLanes <= to; i += kStrands * kLanes) {
      for (int s = 0; s < kStrands; ++s) add(Whole<C>{}, i + s * kLanes, part[s]);
    }
    for_each_vector<C>(i, to, [&](auto vector, int64_t at) { add(vector, at, part[0]); });
    for (int k = 0; k < Sums; ++k) {
      for (int s = 0; s < kStrands; ++s) total[k] += part[s][k];
    }
  }
  for (int k = 0; k < Sums; ++k) sums[k] = sum_of<C>(total[k]);
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

  // Row r of all images.
  const T* x_row(int64_t r) const {
    const int64_t run = r / args.run, row = r - run * args.run;
    return static_cast<const T*>(args.x) + run * args.x_run_stride + row * args.x_row_stride;
  }
  const T* grad_y_row(int64_t r) const {
    const int64_t run = r / args.run, row = r - run * args.run;
    return static_cast<const T*>(args.grad_y) + run * args.grad_y_run_stride +
           row * args.grad_y_row_stride;
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

  // Of the row x. The next one's memory is asked for on the way, for the hardware does so late:
  // where rows lie beyond the caches, a Zen 4 needs up to a quarter less time.
  void moments(const T* x, const T* y, C* mean, C* rstd) const {
    double first[1], second[2];
    sum_channels<C>(channels, [&](auto vector, int64_t i, V (&sum)[1]) {
      sum[0] += vector.load(x + i);
    }, first);
    const C near = static_cast<C>(first[0] / channels);
    sum_channels<C>(channels, [&](auto vector, int64_t i, V (&sum)[2]) {
      __builtin_prefetch(x + args.x_row_stride + i);
      __builtin_prefetch(y + channels + i, 1);
      const V d = vector.only(vector.load(x + i) - near);
      sum[0] += d;
      sum[1] += d * d;
    }, second);
    const double delta = second[0] / channels, m2 = second[1] - second[0] * delta;
    const double variance = (m2 > 0 || m2 != m2 ? m2 : 0) / channels;
    *mean = static_cast<C>(near + delta);
    *rstd = static_cast<C>(1 / __builtin_sqrt(variance + args.eps));
  }

  // Rows [begin, end) of all images.
  template <bool Affine>
  void forward(int64_t begin, int64_t end) const {
    for (int64_t r = begin; r < end; ++r) {
      const T* x = x_row(r);
      T* y = static_cast<T*>(args.y) + r * channels;
      C mean, rstd;
      moments(x, y, &mean, &rstd);
      const C *gamma = affine(r / args.rows), *beta = gamma + channels;
      for_each_vector<C>(0, channels, [&](auto vector, int64_t i) {
        // x - mean first: x * scale + shift would lose the digits that a large mean has in common.
        V v = (vector.load(x + i) - mean) * rstd;
        if constexpr (Affine) v = v * vector.load(gamma + i) + vector.load(beta + i);
        vector.store(y + i, v);
      });
      if (args.mean) static_cast<C*>(args.mean)[r] = mean;
      if (args.rstd) static_cast<C*>(args.rstd)[r] = rstd;
    }
  }

  // ---- backward --------------------------------------------------------------------------------

  // Row r of all images; its parts of the sums over rows are added to s1 and s2, if wanted.
  template <bool Affine>
  void grad_row(int64_t r, const C* gamma, C* s1, C* s2) const {
    const T *x = x_row(r), *dy = grad_y_row(r);
    T* dx = static_cast<T*>(args.grad_x) + r * channels;
    const C mean = static_cast<const C*>(args.mean)[r], rstd = static_cast<const C*>(args.rstd)[r];
    const auto scaled = [&](const auto& vector, V grad, int64_t i) {
      if constexpr (Affine) return grad * vector.load(gamma + i);
      return grad;
    };
    double found[2];
    sum_channels<C>(channels, [&](auto vector, int64_t i, V (&sum)[2]) {
      const V g = scaled(vector, vector.load(dy + i), i);
      sum[0] += g;
      sum[1] += g * ((vector.load(x + i) - mean) * rstd);
    }, found);
    const C g_mean = static_cast<C>(found[0] / channels);
    const C g_slope = static_cast<C>(found[1] / channels);
    for_each_vector<C>(0, channels, [&](auto vector, int64_t i) {
      // As in `moments`.
      __builtin_prefetch(x + args.x_row_stride + i);
      __builtin_prefetch(dy + args.grad_y_row_stride + i);
      __builtin_prefetch(dx + channels + i, 1);
      const V grad = vector.load(dy + i), xhat = (vector.load(x + i) - mean) * rstd;
      vector.store(dx + i, (scaled(vector, grad, i) - g_mean - xhat * g_slope) * rstd);
      if (!s1) return;
      vector.store(s1 + i, vector.load(s1 + i) + grad);
      vector.store(s2 + i, vector.load(s2 + i) + grad * xhat);
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
      const int64_t last = smaller(first + kLayerNormBlockRows, args.rows);
      for (int64_t row = first; row < last; ++row) {
        grad_row<Affine>(n * args.rows + row, affine(n), s1, s2);
      }
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
