// The stages of group norm for ranges of their work (see ddsm/group_norm.h).
//
// Moments: per block of pixels and channel, sum and sum of squares of the deviations from the mean
// of the block's first pixels (that is near the mean, so the squares cannot cancel badly). Blocks,
// then the channels of a group, are merged in double by Chan's formula. All sums run in a fixed
// order: results depend neither on threads nor on scheduling.
#include "ddsm/group_norm.h"

#include "arithmetic.h"
#include "group_norm_strips.h"
#include "norm_affine.h"

namespace ddsm::DDSM_ISA {
namespace {

// Blocks [begin, end) of those of all images.
template <class T>
void moments_of_blocks(const GroupNormMomentsArgs& args, int64_t begin, int64_t end) {
  const int64_t size = args.block_pixels, blocks = ceil_div(args.pixels, size);
  const int64_t channels = args.channels, stride = args.x_pixel_stride;
  int64_t n = begin / blocks, first = (begin - n * blocks) * size;
  for (int64_t i = begin; i < end; ++i) {
    double* mean = args.moments + i * 2 * channels;
    const T* x = static_cast<const T*>(args.x) + (n * args.pixels + first) * stride;
    row_moments(x, stride, smaller(size, args.pixels - first), channels, true, mean,
                mean + channels);
    first += size;
    if (first < args.pixels) continue;
    first = 0;
    ++n;
  }
}

// Chan's formula over the blocks of one image: the channel's mean and sum of squared deviations.
void merge_blocks(const GroupNormMergeSource& source, int64_t pixels, int64_t n, double* mean,
                  double* m2) {
  const int64_t size = source.block_pixels, blocks = ceil_div(pixels, size);
  const int64_t channels = source.channels;
  const double* parts = source.moments + n * blocks * 2 * channels;
  const auto rows_of = [&](int64_t b) {
    return static_cast<double>(smaller(size, pixels - b * size));
  };
  for (int64_t c = 0; c < channels; ++c) mean[c] = m2[c] = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const double share = rows_of(b) / pixels;
    for (int64_t c = 0; c < channels; ++c) mean[c] += share * parts[b * 2 * channels + c];
  }
  for (int64_t b = 0; b < blocks; ++b) {
    const double rows = rows_of(b);
    const double* part = parts + b * 2 * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const double d = part[c] - mean[c];
      m2[c] += part[channels + c] + rows * d * d;
    }
  }
}

// The first two rows of the norm of image n: a group's mean and rstd, and these as outputs.
template <class C>
void merge_groups(const GroupNormMergeArgs& args, int64_t n, int64_t channels, const double* mean,
                  const double* m2, C* norm) {
  const int64_t size = channels / args.groups;
  for (int64_t g = 0; g < args.groups; ++g) {
    double group_mean = 0, group_m2 = 0;
    for (int64_t c = g * size; c < (g + 1) * size; ++c) group_mean += mean[c];
    group_mean /= size;
    for (int64_t c = g * size; c < (g + 1) * size; ++c) {
      const double d = mean[c] - group_mean;
      group_m2 += m2[c] + args.pixels * d * d;
    }
    const C rstd =
        static_cast<C>(1 / __builtin_sqrt(group_m2 / (size * args.pixels) + args.eps));
    for (int64_t c = g * size; c < (g + 1) * size; ++c) {
      norm[c] = static_cast<C>(group_mean);
      norm[channels + c] = rstd;
    }
    if (args.mean) static_cast<C*>(args.mean)[n * args.groups + g] = static_cast<C>(group_mean);
    if (args.rstd) static_cast<C*>(args.rstd)[n * args.groups + g] = rstd;
  }
}

// gamma and beta of `count` channels from parameter `offset` on.
template <class C, class P>
void apply_affine(const GroupNormMergeArgs& args, int64_t offset, int64_t count, C* scale,
                  C* beta) {
  const P* gamma = static_cast<const P*>(args.weight) + offset;
  const P* shift = static_cast<const P*>(args.bias) + offset;
  for (int64_t i = 0; i < count; ++i) {
    scale[i] = static_cast<C>(scale[i] * static_cast<double>(to_compute(gamma[i])));
    beta[i] = static_cast<C>(to_compute(shift[i]));
  }
}

// The same with FiLM in it: row `row` of the modulation, from channel `channel` of the norm on.
template <class C>
void apply_modulated(const GroupNormMergeArgs& args, int64_t row, int64_t offset, int64_t channel,
                     int64_t count, C* scale, C* beta) {
  for (int64_t i = 0; i < count; ++i) {
    const NormAffine affine =
        NormAffine{value_at(args.weight, args.param_dtype, offset + i),
                   value_at(args.bias, args.param_dtype, offset + i)}
            .modulated(value_at(args.scale, args.modulation_dtype, row + channel + i),
                       value_at(args.shift, args.modulation_dtype, row + channel + i));
    scale[i] = static_cast<C>(scale[i] * affine.gamma);
    beta[i] = static_cast<C>(affine.beta);
  }
}

// gamma, beta and FiLM into the norm of image n.
template <class C>
void merge_affine(const GroupNormMergeArgs& args, int64_t n, int64_t channels, C* norm) {
  C *scale = norm + channels, *beta = norm + 2 * channels;
  int64_t c = 0;
  for (int s = 0; s < args.source_count; c += args.sources[s++].channels) {
    const int64_t offset = args.sources[s].param_offset, count = args.sources[s].channels;
    if (args.scale) {
      apply_modulated(args, n * args.modulation_stride, offset, c, count, scale + c, beta + c);
    } else if (args.param_dtype == DType::kFloat64) {
      apply_affine<C, double>(args, offset, count, scale + c, beta + c);
    } else if (args.param_dtype == DType::kFloat32) {
      apply_affine<C, float>(args, offset, count, scale + c, beta + c);
    } else {
      apply_affine<C, Bf16>(args, offset, count, scale + c, beta + c);
    }
  }
}

template <class C>
void merge_image(const GroupNormMergeArgs& args, int64_t n, double* scratch) {
  int64_t channels = 0;
  for (int s = 0; s < args.source_count; ++s) channels += args.sources[s].channels;
  double *mean = scratch, *m2 = scratch + channels;
  for (int64_t s = 0, first = 0; s < args.source_count; first += args.sources[s++].channels) {
    merge_blocks(args.sources[s], args.pixels, n, mean + first, m2 + first);
  }
  C* norm = static_cast<C*>(args.norm) + n * 3 * channels;
  merge_groups(args, n, channels, mean, m2, norm);
  merge_affine(args, n, channels, norm);
}

template <bool Norm, bool Silu, class T, class TY>
struct Apply {
  using C = Compute<T>;

  const GroupNormApplyArgs& args;
  int64_t channels = 0;  // of all sources

  explicit Apply(const GroupNormApplyArgs& a) : args(a) {
    for (int s = 0; s < args.source_count; ++s) channels += args.sources[s].channels;
  }

  // x's and y's pixel p of all images.
  static const T* x_at(const GroupNormApplySource& source, int64_t p) {
    return static_cast<const T*>(source.x) + p * source.x_pixel_stride;
  }
  static TY* y_at(const GroupNormApplySource& source, int64_t p) {
    return static_cast<TY*>(source.y) + p * source.y_pixel_stride;
  }
  const C* norm_of(int64_t n) const {
    return Norm ? static_cast<const C*>(args.norm) + n * 3 * channels : nullptr;
  }

  // Calls body(source, its norm) for image n.
  template <class Body>
  void for_each_source(int64_t n, const Body& body) const {
    const C* norm = norm_of(n);
    for (int s = 0; s < args.source_count; ++s) {
      body(args.sources[s], norm);
      if constexpr (Norm) norm += args.sources[s].channels;
    }
  }

  // So few pixels that those of a second source's half of y are still in the cache.
  static constexpr int64_t kPixels = 64;

  void pixels(int64_t begin, int64_t end) const {
    const int64_t pixels = args.height * args.width;
    while (begin < end) {
      const int64_t n = begin / pixels;
      const int64_t stop = smaller(begin + kPixels, smaller(end, (n + 1) * pixels));
      for_each_source(n, [&](const GroupNormApplySource& source, const C* norm) {
        const T* from = x_at(source, begin);
        TY* to = y_at(source, begin);
        for (int64_t p = begin; p < stop; ++p) {
          const T* const x[1] = {from};
          TY* const y[1] = {to};
          apply_pixels<Norm, Silu>(x, norm, channels, source.channels, y);
          from += source.x_pixel_stride;
          to += source.y_pixel_stride;
        }
      });
      begin = stop;
    }
  }

  // Row `row` of all images of x becomes two of y.
  void row_up(int64_t row) const {
    const int64_t width = args.width;
    for_each_source(row / args.height, [&](const GroupNormApplySource& source, const C* norm) {
      for (int64_t j = 0; j < width; ++j) {
        const int64_t to = 2 * row * 2 * width + 2 * j;
        const T* const x[1] = {x_at(source, row * width + j)};
        TY* const y[4] = {y_at(source, to), y_at(source, to + 1), y_at(source, to + 2 * width),
                          y_at(source, to + 2 * width + 1)};
        apply_pixels<Norm, Silu>(x, norm, channels, source.channels, y);
      }
    });
  }

  // Row `row` of all images of y from two of x.
  void row_down(int64_t row) const {
    const int64_t width = args.width;
    for_each_source(row / (args.height / 2), [&](const GroupNormApplySource& source,
                                                 const C* norm) {
      for (int64_t j = 0; j < width / 2; ++j) {
        const int64_t from = 2 * row * width + 2 * j;
        const T* const x[4] = {x_at(source, from), x_at(source, from + 1),
                               x_at(source, from + width), x_at(source, from + width + 1)};
        TY* const y[1] = {y_at(source, row * (width / 2) + j)};
        apply_pixels<Norm, Silu>(x, norm, channels, source.channels, y);
      }
    });
  }

  void range(int64_t begin, int64_t end) const {
    if (args.resample == Resample::kNone) return pixels(begin, end);
    for (int64_t row = begin; row < end; ++row) {
      args.resample == Resample::kUp ? row_up(row) : row_down(row);
    }
  }
};

template <class T, class TY>
void apply_range(const GroupNormApplyArgs& args, int64_t begin, int64_t end) {
  if (args.norm) {
    args.silu ? Apply<true, true, T, TY>(args).range(begin, end)
              : Apply<true, false, T, TY>(args).range(begin, end);
  } else {
    args.silu ? Apply<false, true, T, TY>(args).range(begin, end)
              : Apply<false, false, T, TY>(args).range(begin, end);
  }
}

}  // namespace

void group_norm_moments_range(const GroupNormMomentsArgs& args, int64_t begin, int64_t end) {
  if (args.dtype == DType::kFloat64) moments_of_blocks<double>(args, begin, end);
  else if (args.dtype == DType::kBFloat16) moments_of_blocks<Bf16>(args, begin, end);
  else moments_of_blocks<float>(args, begin, end);
}

void group_norm_merge_image(const GroupNormMergeArgs& args, int64_t n, double* scratch) {
  args.compute == DType::kFloat64 ? merge_image<double>(args, n, scratch)
                                  : merge_image<float>(args, n, scratch);
}

void group_norm_apply_range(const GroupNormApplyArgs& args, int64_t begin, int64_t end) {
  if (args.dtype == DType::kFloat64) apply_range<double, double>(args, begin, end);
  else if (args.dtype == DType::kFloat32) apply_range<float, float>(args, begin, end);
  else if (args.y_dtype == DType::kBFloat16) apply_range<Bf16, Bf16>(args, begin, end);
  else apply_range<Bf16, float>(args, begin, end);
}

}  // namespace ddsm::DDSM_ISA
