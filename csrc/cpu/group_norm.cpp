// Splits group norm over torch's pool: the stages one by one, and sliced_group_norm made of them.
#include "ddsm/group_norm.h"

#include <cstring>
#include <vector>

#include "group_norm_layout.h"
#include "isa.h"

namespace ddsm {

DDSM_DECLARE_VARIANTS(void, group_norm_moments_range, const GroupNormMomentsArgs& args,
                      int64_t begin, int64_t end)
DDSM_DECLARE_VARIANTS(void, group_norm_merge_image, const GroupNormMergeArgs& args, int64_t n,
                      double* scratch)
DDSM_DECLARE_VARIANTS(void, group_norm_apply_range, const GroupNormApplyArgs& args, int64_t begin,
                      int64_t end)
DDSM_DECLARE_VARIANTS(void, group_norm_backward, const GroupNormArgs& args)

namespace {

// Elements that pay for waking a thread: about 10 us of loads, fewer where exp is computed.
constexpr int64_t kGrainElements = 65536;
constexpr int64_t kSiluGrainElements = 16384;

// The forward's calls of the stages, with what they hand on in the scratch memory.
struct Forward {
  GroupNormMomentsArgs moments[2] = {};
  GroupNormMergeArgs merge{};
  GroupNormApplyArgs apply{};

  Forward(const GroupNormArgs& args, const GroupNormLayout& layout) {
    char* scratch = static_cast<char*>(args.scratch);
    double* partials = reinterpret_cast<double*>(scratch + layout.partials);
    for (int64_t s = 0; s < args.source_count; ++s) {
      const GroupNormSource& from = args.sources[s];
      moments[s] = {from.x, args.dtype,           args.n,                args.pixels,
                    from.c, from.x_pixel_stride, kGroupNormBlockPixels, partials};
      merge.sources[s] = {from.c, from.param_offset, partials, kGroupNormBlockPixels};
      apply.sources[s] = {from.x, from.c, from.x_pixel_stride, from.y, from.c};
      partials += args.n * layout.blocks * 2 * from.c;
    }
    fill_merge(args, scratch + layout.coefficients);
    apply.images = args.n;
    apply.height = 1;
    apply.width = args.pixels;
    apply.source_count = args.source_count;
    apply.dtype = apply.y_dtype = args.dtype;
    apply.norm = merge.norm;
    apply.silu = args.silu;
  }

  void fill_merge(const GroupNormArgs& args, void* norm) {
    merge.images = args.n;
    merge.pixels = args.pixels;
    merge.source_count = args.source_count;
    merge.groups = args.groups;
    merge.eps = args.eps;
    merge.weight = args.weight;
    merge.bias = args.bias;
    merge.param_dtype = args.param_dtype;
    merge.scale = args.scale;
    merge.shift = args.shift;
    merge.modulation_dtype = args.dtype;
    merge.modulation_stride = args.modulation_stride;
    merge.compute = args.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    merge.norm = norm;
    merge.mean = args.mean;
    merge.rstd = args.rstd;
  }
};

}  // namespace

int64_t group_norm_scratch_bytes(const GroupNormArgs& args) {
  return group_norm_layout(args).bytes;
}

void group_norm_forward(const GroupNormArgs& args) {
  if (args.n == 0 || args.pixels == 0) return;
  const GroupNormLayout layout = group_norm_layout(args);
  const Forward stages(args, layout);
  double* sums = reinterpret_cast<double*>(static_cast<char*>(args.scratch) + layout.sums);
  group_norm_schedule(
      args, layout,
      [&](int64_t n, int64_t block) {
        const int64_t i = n * layout.blocks + block;
        for (int64_t s = 0; s < args.source_count; ++s) {
          DDSM_CALL_VARIANT(group_norm_moments_range, stages.moments[s], i, i + 1);
        }
      },
      [&](int64_t n) {
        DDSM_CALL_VARIANT(group_norm_merge_image, stages.merge, n, sums + n * 2 * layout.channels);
      },
      [&](int64_t n, int64_t block) {
        const int64_t first = block * kGroupNormBlockPixels, begin = n * args.pixels + first;
        const int64_t pixels = smaller(kGroupNormBlockPixels, args.pixels - first);
        DDSM_CALL_VARIANT(group_norm_apply_range, stages.apply, begin, begin + pixels);
      });
}

void group_norm_backward(const GroupNormArgs& args) {
  if (args.n > 0 && args.pixels > 0) return DDSM_CALL_VARIANT(group_norm_backward, args);
  const int64_t bytes = args.n * group_norm_layout(args).channels * element_bytes(args.dtype);
  if (args.grad_scale) std::memset(args.grad_scale, 0, bytes);
  if (args.grad_shift) std::memset(args.grad_shift, 0, bytes);
}

void group_norm_moments(const GroupNormMomentsArgs& args) {
  parallel_for(0, args.images * ceil_div(args.pixels, args.block_pixels),
               kGrainElements / (args.block_pixels * args.channels) + 1,
               [&](int64_t begin, int64_t end) {
                 DDSM_CALL_VARIANT(group_norm_moments_range, args, begin, end);
               });
}

void group_norm_merge(const GroupNormMergeArgs& args) {
  int64_t channels = 0, elements = 0;
  for (int s = 0; s < args.source_count; ++s) {
    const GroupNormMergeSource& source = args.sources[s];
    channels += source.channels;
    elements += 2 * source.channels * ceil_div(args.pixels, source.block_pixels);
  }
  parallel_for(0, args.images, kGrainElements / elements + 1, [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(2 * channels);
    for (int64_t n = begin; n < end; ++n) {
      DDSM_CALL_VARIANT(group_norm_merge_image, args, n, scratch.data());
    }
  });
}

void group_norm_apply(const GroupNormApplyArgs& args) {
  int64_t elements = 0;  // of a unit of the work: a pixel, or a row of the smaller side
  for (int s = 0; s < args.source_count; ++s) elements += args.sources[s].channels;
  int64_t units = args.images * args.height * args.width;
  if (args.resample != Resample::kNone) {
    const bool up = args.resample == Resample::kUp;
    units = args.images * (up ? args.height : args.height / 2);
    elements *= args.width * (up ? 1 : 2);
  }
  const int64_t grain = args.silu ? kSiluGrainElements : kGrainElements;
  parallel_for(0, units, grain / larger(elements, 1) + 1, [&](int64_t begin, int64_t end) {
    DDSM_CALL_VARIANT(group_norm_apply_range, args, begin, end);
  });
}

}  // namespace ddsm
