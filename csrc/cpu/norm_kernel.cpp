// Moments, merging and normalisation of ranges (see ddsm/norm.h).
#include "ddsm/norm.h"

#include <cstring>

#include "norm_strips.h"

namespace ddsm::DDSM_ISA {
namespace {

template <class T>
void moments_of_block(const NormMomentsArgs& args, int64_t n, int64_t block) {
  const int64_t size = args.moments.block_pixels, left = args.pixels - block * size;
  const int64_t blocks = (args.pixels + size - 1) / size;
  double* mean = args.moments.data + (n * blocks + block) * 2 * args.channels;
  const T* x = static_cast<const T*>(args.x) + (n * args.pixels + block * size) * args.channels;
  row_moments(x, args.channels, left < size ? left : size, args.channels, mean,
              mean + args.channels);
}

float param(const void* values, DType dtype, int64_t index) {
  return dtype == DType::kBFloat16 ? to_compute(static_cast<const Bf16*>(values)[index])
                                   : static_cast<const float*>(values)[index];
}

// Chan's formula over the blocks of one image: the channel's mean and sum of squared deviations.
void merge_blocks(const NormSource& source, int64_t pixels, int64_t n, double* mean, double* m2) {
  const int64_t size = source.moments.block_pixels, blocks = (pixels + size - 1) / size;
  const int64_t channels = source.channels;
  const double* parts = source.moments.data + n * blocks * 2 * channels;
  const auto rows_of = [&](int64_t b) {
    return static_cast<double>(b + 1 < blocks ? size : pixels - b * size);
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

template <class T>
void join_row(const T* x, int64_t channels, T* y) {
  std::memcpy(y, x, sizeof(T) * channels);
}

void join_row(const Bf16* x, int64_t channels, float* y) {
  constexpr int64_t kLanes = Lanes<float>::kCount;
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) store(y + c, load(x + c));
  for (; c < channels; ++c) y[c] = to_compute(x[c]);
}

template <class T>
void silu_row(T* y, int64_t channels) {
  constexpr int64_t kLanes = Lanes<float>::kCount;
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t lanes = channels - c < kLanes ? channels - c : kLanes;
    Vec<float> u[1], e[1];
    load_strip(y + c, lanes, u);
    e[0] = -u[0];
    exp(e);
    u[0] /= 1 + e[0];
    store_strip(y + c, lanes, u);
  }
}

template <class T, class TY>
void apply_pixels(const NormApplyArgs& args, int64_t begin, int64_t end) {
  const int64_t total = args.channels[0] + (args.x[1] ? args.channels[1] : 0);
  for (int64_t p = begin; p < end; ++p) {
    TY* y = static_cast<TY*>(args.y) + p * total;
    const float* norm = args.norm ? args.norm + p / args.pixels * 3 * total : nullptr;
    for (int s = 0; s < 2 && args.x[s]; ++s) {
      const int64_t c = args.channels[s];
      const T* x = static_cast<const T*>(args.x[s]) + p * c;
      if (!norm) {
        join_row(x, c, y);
        if (args.silu) silu_row(y, c);
      } else {
        args.silu ? apply_row<true>(x, norm, norm + total, norm + 2 * total, c, y)
                  : apply_row<false>(x, norm, norm + total, norm + 2 * total, c, y);
        norm += c;
      }
      y += c;
    }
  }
}

}  // namespace

void norm_moments_range(const NormMomentsArgs& args, int64_t begin, int64_t end) {
  const int64_t blocks =
      (args.pixels + args.moments.block_pixels - 1) / args.moments.block_pixels;
  for (int64_t i = begin; i < end; ++i) {
    args.dtype == DType::kBFloat16 ? moments_of_block<Bf16>(args, i / blocks, i % blocks)
                                   : moments_of_block<float>(args, i / blocks, i % blocks);
  }
}

void norm_merge_image(const NormMergeArgs& args, int64_t n, double* scratch) {
  int64_t channels = 0;
  for (int s = 0; s < args.source_count; ++s) channels += args.sources[s].channels;
  double *mean = scratch, *m2 = scratch + channels;
  for (int64_t s = 0, first = 0; s < args.source_count; first += args.sources[s++].channels) {
    merge_blocks(args.sources[s], args.pixels, n, mean + first, m2 + first);
  }
  float* norm = args.norm + n * 3 * channels;
  const int64_t size = channels / args.groups;
  for (int64_t g = 0; g < args.groups; ++g) {
    double group_mean = 0, group_m2 = 0;
    for (int64_t c = g * size; c < (g + 1) * size; ++c) group_mean += mean[c];
    group_mean /= size;
    for (int64_t c = g * size; c < (g + 1) * size; ++c) {
      const double d = mean[c] - group_mean;
      group_m2 += m2[c] + args.pixels * d * d;
    }
    const double rstd = 1 / __builtin_sqrt(group_m2 / (size * args.pixels) + args.eps);
    for (int64_t c = g * size; c < (g + 1) * size; ++c) {
      norm[c] = static_cast<float>(group_mean);
      norm[channels + c] = static_cast<float>(rstd);
    }
  }
  int64_t c = 0;
  for (int s = 0; s < args.source_count; ++s) {
    for (int64_t i = 0; i < args.sources[s].channels; ++i, ++c) {
      const int64_t index = args.sources[s].param_offset + i;
      norm[channels + c] *= param(args.weight, args.param_dtype, index);
      norm[2 * channels + c] = param(args.bias, args.param_dtype, index);
    }
  }
}

void norm_apply_range(const NormApplyArgs& args, int64_t begin, int64_t end) {
  if (args.dtype != DType::kBFloat16) {
    apply_pixels<float, float>(args, begin, end);
  } else if (args.y_dtype == DType::kBFloat16) {
    apply_pixels<Bf16, Bf16>(args, begin, end);
  } else {
    apply_pixels<Bf16, float>(args, begin, end);
  }
}

}  // namespace ddsm::DDSM_ISA
