// sliced_conv2d and its gradients as matrix products over pixels (gemm.h).
#include "ddsm/conv2d.h"

#include <utility>

#include "conv2d_plan.h"
#include "ddsm/group_norm.h"
#include "ddsm/sizes.h"
#include "gemm.h"
#include "isa.h"
#include "split.h"
#include "winograd.h"

namespace ddsm {

DDSM_DECLARE_VARIANTS(GemmTileShape, gemm_tile_shape, DType compute)
DDSM_DECLARE_VARIANTS(void, make_panel, const GemmArgs& problem, const GemmPhase& phase,
                      int64_t panel, float* to)
DDSM_DECLARE_VARIANTS(void, make_bf16_panel, const GemmArgs& problem, int64_t panel, void* to)
DDSM_DECLARE_VARIANTS(void, make_winograd_panel, const GemmArgs& problem, int64_t panel,
                      int32_t tile, bool flipped, float* to)

namespace {

// Pixels of a block of moments that no output pass gives for free: short enough for fp32 sums.
constexpr int64_t kMomentPixels = 64;
// Weights whose rearrangement pays for waking a thread.
constexpr int64_t kPanelGrain = 1 << 14;

bool is_winograd(Conv2dAlgo algo) {
  return algo == Conv2dAlgo::kWinograd4 || algo == Conv2dAlgo::kWinograd2;
}

// m of F(m x m, 3 x 3).
int32_t tile_of(Conv2dAlgo algo) { return algo == Conv2dAlgo::kWinograd4 ? 4 : 2; }

GemmSource source_of(const Conv2dImage& image, int64_t height, int64_t width) {
  return {image.data, image.n_stride, image.h_stride, image.w_stride,
          height,     width,          image.channels, image.weight_offset};
}

// Lanes run over output channels, depth over input channels.
GemmWeight forward_weight(const Conv2dWeight& weight) {
  return {weight.data,     weight.out_stride, weight.in_stride,
          weight.r_stride, weight.s_stride,   weight.kernel,
          weight.kernel * weight.kernel,      weight.block_stride};
}

// A phase of an image with the given strides in elements.
GemmPhase gemm_phase(const Conv2dPhase& phase, int64_t row_stride, int64_t col_stride,
                     const void* panels = nullptr) {
  return {phase.rows,
          phase.cols,
          phase.first_row * row_stride + phase.first_col * col_stride,
          phase.pixel_step * row_stride,
          phase.pixel_step * col_stride,
          phase.input_step,
          static_cast<int32_t>(phase.taps.size()),
          phase.taps.data(),
          panels};
}

DType compute_of(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

int64_t panel_lanes() { return DDSM_CALL_VARIANT(gemm_tile_shape, DType::kFloat32).lanes; }

// Floats of one tap's or frequency's panels.
int64_t panel_floats(int64_t lanes, int64_t depth, bool glu = false) {
  const int64_t width = glu ? panel_lanes() / 2 : panel_lanes();
  return ceil_div(lanes, width) * panel_lanes() * depth;
}

// F(m x m, 3 x 3) from an image of in_height x in_width (times scale) to height x width.
WinogradProblem winograd_problem(Conv2dAlgo algo, const Conv2dShape& shape, const Conv2dPanels& p,
                                 bool transposed) {
  WinogradProblem problem{};
  problem.tile = tile_of(algo);
  problem.images = shape.images;
  problem.in_height = transposed ? shape.out_height : shape.height;
  problem.in_width = transposed ? shape.out_width : shape.width;
  problem.height = transposed ? shape.height : shape.out_height;
  problem.width = transposed ? shape.width : shape.out_width;
  problem.scale = transposed ? 1 : shape.scale;
  problem.padding = transposed ? 2 - shape.padding : shape.padding;
  problem.panels = static_cast<const float*>(p.data);
  problem.panel_depth = transposed ? p.c_out_max : p.c_in_max;
  problem.panel_count = ceil_div(transposed ? p.c_in_max : p.c_out_max, panel_lanes());
  return problem;
}

bool winograd_forward(const Conv2dForwardArgs& args) {
  WinogradProblem problem = winograd_problem(args.algo, args.shape, args.panels, false);
  problem.dtype = args.y_dtype;
  problem.n_sources = args.x2.data ? 2 : 1;
  problem.sources[0] = args.x;
  problem.sources[1] = args.x2;
  problem.norm = args.norm;
  problem.norm_silu = args.norm_silu;
  problem.lanes = args.c_out;
  problem.bias = args.bias;
  problem.bias_dtype = args.weight.dtype;
  problem.shift = args.shift;
  problem.residual = args.residual;
  problem.residual_scale = args.residual_scale;
  problem.gain = static_cast<float>(args.gain);
  problem.y = args.y;
  problem.moments = args.moments;
  return winograd_multiply(problem);
}

bool winograd_grad_weight(const Conv2dGradWeightArgs& args) {
  WinogradProblem problem = winograd_problem(args.algo, args.shape, {}, false);
  problem.dtype = args.compute;
  problem.n_sources = args.x2.data ? 2 : 1;
  problem.sources[0] = args.x;
  problem.sources[1] = args.x2;
  return winograd_accumulate(problem, {args.grad_y, args.grad_weight});
}

void direct_moments(const Conv2dForwardArgs& args, int64_t columns) {
  GroupNormMomentsArgs moments{};
  moments.x = args.y;
  moments.dtype = args.y_dtype;
  moments.images = args.shape.images;
  moments.pixels = args.shape.out_height * args.shape.out_width;
  moments.channels = moments.x_pixel_stride = columns;
  moments.block_pixels = kMomentPixels;
  moments.moments = args.moments;
  group_norm_moments(moments);
}

}  // namespace

bool conv2d_has(Conv2dAlgo algo) {
  return algo != Conv2dAlgo::kDirectBf16 || active_isa() == Isa::kAvx512Bf16;
}

int64_t conv2d_moment_pixels(const Conv2dShape& shape, Conv2dAlgo algo) {
  return is_winograd(algo) ? tile_of(algo) * shape.out_width : kMomentPixels;
}

int64_t conv2d_panel_floats(int64_t kernel, int64_t c_out_max, int64_t c_in_max, Conv2dAlgo algo,
                            int64_t scale, bool transposed, bool glu) {
  if (kernel < 1 || kernel > kLargestPanelKernel || c_out_max < 1 || c_in_max < 1 ||
      checked_product({kernel, kernel, c_out_max, c_in_max}) < 0 ||
      (is_winograd(algo) && (kernel != 3 || glu))) {
    return -1;
  }
  if (algo == Conv2dAlgo::kDirectBf16) {  // two to a float
    return kernel * kernel * panel_floats(c_out_max, ceil_div(c_in_max, 2), glu);
  }
  const int64_t one = transposed ? panel_floats(c_in_max, c_out_max)
                                 : panel_floats(c_out_max, c_in_max, glu);
  if (is_winograd(algo)) return (tile_of(algo) + 2) * (tile_of(algo) + 2) * one;
  int64_t taps = 0;
  for (const Conv2dPhase& phase : plan_panels(kernel, scale)) taps += phase.taps.size();
  return taps * one;
}

void conv2d_make_panels(const Conv2dWeight& weight, int64_t c_out_max, int64_t c_in_max,
                        Conv2dAlgo algo, int64_t scale, bool transposed, bool glu, void* panels) {
  GemmArgs problem{};
  if (glu) problem.activation = Activation::kGeglu;
  problem.weight_dtype = weight.dtype;
  problem.n_sources = 1;
  problem.weight = forward_weight(weight);
  problem.lanes = c_out_max;
  problem.sources[0].channels = c_in_max;
  if (transposed) {
    std::swap(problem.weight.lane_stride, problem.weight.depth_stride);
    std::swap(problem.lanes, problem.sources[0].channels);
  }
  const int64_t count = gemm_panels(problem, panel_lanes());
  const int64_t grain =
      kPanelGrain / (panel_lanes() * problem.sources[0].channels * weight.kernel * weight.kernel);
  const auto for_each_panel = [&](const auto& make) {
    parallel_for(0, count, grain + 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) make(p);
    });
  };
  float* to = static_cast<float*>(panels);
  if (algo == Conv2dAlgo::kDirectBf16) {
    for_each_panel([&](int64_t p) { DDSM_CALL_VARIANT(make_bf16_panel, problem, p, to); });
    return;
  }
  if (is_winograd(algo)) {
    for_each_panel([&](int64_t p) {
      DDSM_CALL_VARIANT(make_winograd_panel, problem, p, tile_of(algo), transposed, to);
    });
    return;
  }
  for (const Conv2dPhase& phase : plan_panels(weight.kernel, scale)) {
    const GemmPhase gemm = gemm_phase(phase, 0, 0);
    for_each_panel([&](int64_t p) { DDSM_CALL_VARIANT(make_panel, problem, gemm, p, to); });
    to += phase.taps.size() * panel_floats(problem.lanes, problem.sources[0].channels, glu);
  }
}

bool conv2d_forward(const Conv2dForwardArgs& args) {
  if (is_winograd(args.algo)) return winograd_forward(args);
  const Conv2dShape& shape = args.shape;
  GemmArgs problem{};
  problem.compute =
      args.algo == Conv2dAlgo::kDirectBf16 ? DType::kBFloat16 : compute_of(args.y_dtype);
  problem.weight_dtype = args.weight.dtype;
  problem.y_dtype = args.y_dtype;
  problem.n_sources = args.x2.data ? 2 : 1;
  problem.sources[0] = source_of(args.x, shape.height, shape.width);
  problem.sources[1] = source_of(args.x2, shape.height, shape.width);
  problem.weight = forward_weight(args.weight);
  problem.y = args.y;
  problem.images = shape.images;
  problem.lanes = args.c_out;
  problem.parts = args.parts;
  problem.lanes_max = args.panels.c_out_max;
  problem.depth_max = args.panels.c_in_max;
  problem.bias = args.bias;
  problem.shift = args.shift;
  problem.activation = args.activation;
  problem.gate = args.gate;
  problem.residual = args.residual;
  problem.gain = args.gain;
  const bool glu = is_glu(problem);
  const int64_t columns = glu ? args.c_out : args.parts * args.c_out;
  problem.y_n_stride = shape.out_height * shape.out_width * columns;
  const float* panels = static_cast<const float*>(args.panels.data);
  for (const Conv2dPhase& phase : plan_forward(shape, args.weight.kernel)) {
    if (!gemm_multiply(problem,
                       gemm_phase(phase, shape.out_width * columns, columns, panels))) {
      return false;
    }
    if (panels) {
      panels += (glu ? 1 : args.parts) * phase.taps.size() *
                panel_floats(args.panels.c_out_max, args.panels.c_in_max, glu);
    }
  }
  if (args.moments) direct_moments(args, columns);
  return true;
}

bool conv2d_grad_x(const Conv2dGradXArgs& args) {
  if (is_winograd(args.algo)) {
    WinogradProblem problem = winograd_problem(args.algo, args.shape, args.panels, true);
    problem.dtype = args.grad_x_dtype;
    problem.n_sources = 1;
    problem.sources[0] = args.grad_y;
    problem.first_lane = args.c_in_offset;
    problem.lanes = args.c_in;
    problem.y = args.grad_x;
    return winograd_multiply(problem);
  }
  const Conv2dShape& shape = args.shape;
  GemmArgs problem{};
  problem.compute = compute_of(args.grad_x_dtype);
  problem.weight_dtype = args.weight.dtype;
  problem.y_dtype = args.grad_x_dtype;
  problem.n_sources = 1;
  problem.sources[0] = source_of(args.grad_y, shape.out_height, shape.out_width);
  const Conv2dWeight& weight = args.weight;
  problem.weight = {advanced(weight.data, args.c_in_offset * weight.in_stride, weight.dtype),
                    weight.in_stride, weight.out_stride, weight.r_stride, weight.s_stride,
                    weight.kernel,    weight.kernel * weight.kernel};
  problem.y = args.grad_x;
  problem.images = shape.images;
  problem.y_n_stride = shape.height * shape.width * args.c_in;
  problem.lanes = args.c_in;
  for (const Conv2dPhase& phase : plan_grad_x(shape, weight.kernel)) {
    if (!gemm_multiply(problem, gemm_phase(phase, shape.width * args.c_in, args.c_in))) {
      return false;
    }
  }
  return true;
}

bool conv2d_grad_weight(const Conv2dGradWeightArgs& args) {
  const Conv2dShape& shape = args.shape;
  GemmArgs problem{};
  problem.compute = args.compute;
  problem.weight_dtype = args.grad_weight.dtype;
  problem.y_dtype = args.compute;
  problem.n_sources = args.x2.data ? 2 : 1;
  problem.sources[0] = source_of(args.x, shape.height, shape.width);
  problem.sources[1] = source_of(args.x2, shape.height, shape.width);
  problem.weight = forward_weight(args.grad_weight);
  problem.y = const_cast<void*>(args.grad_y.data);
  problem.images = shape.images;
  problem.y_n_stride = args.grad_y.n_stride;
  problem.lanes = args.grad_y.channels;
  const bool direct = args.algo == Conv2dAlgo::kDirect;
  if (!direct && !winograd_grad_weight(args)) return false;
  for (const Conv2dPhase& phase : plan_forward(shape, args.grad_weight.kernel)) {
    const GemmPhase gemm = gemm_phase(phase, args.grad_y.h_stride, args.grad_y.w_stride);
    if (direct && !gemm_accumulate(problem, gemm)) return false;
    if (args.grad_bias) gemm_accumulate_bias(problem, gemm, args.grad_bias);
  }
  return true;
}

}  // namespace ddsm
