// sliced_conv2d on CUDA: from the arguments to a path, a tile, parameters and launches.
//
// An enlarged image is read by index; on sm_90a its four classes of pixels (even and odd rows and
// columns) are computed one after the other. As four convolutions with 2x2 windows they would need
// 16 products instead of 36, but of sums of weights: a copy, made again whenever weights change.
#include "ddsm/conv2d_cuda.h"

#include "conv2d_head.cuh"
#include "conv2d_sm90.cuh"
#include "gemm_tile.cuh"
#include "launch.cuh"

namespace ddsm {
namespace {

bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

Math math_of(const Conv2dCudaOptions& options) {
  if (options.dtype == DType::kBFloat16) return Math::kBFloat16;
  if (options.dtype == DType::kFloat16) return Math::kFloat16;
  return options.ieee ? Math::kIeee : Math::kTf32;
}

struct ImageSize {
  int64_t images, height, width;
};

ImageSize size_of_x(const Conv2dShape& s) { return {s.images, s.height, s.width}; }
ImageSize size_of_y(const Conv2dShape& s) { return {s.images, s.out_height, s.out_width}; }

ImageView view_of(const Conv2dImage& image, const ImageSize& size, DType dtype) {
  const int64_t lanes = 16 / element_bytes(dtype);
  // A stride along a dimension of one element says nothing.
  const auto aligned = [&](int64_t count, int64_t stride) {
    return count == 1 || stride % lanes == 0;
  };
  const bool vector = is_aligned(image.data) && aligned(size.images, image.n_stride) &&
                      aligned(size.height, image.h_stride) && aligned(size.width, image.w_stride);
  return {image.data,     image.n_stride, image.h_stride,
          image.w_stride, static_cast<int32_t>(image.channels), vector, image.weight_offset};
}

// `offsets`: first input channels of the weight that a chunk may start at, both sources'.
WeightView view_of(const Conv2dWeight& weight, DType dtype, int64_t offset, int64_t offset2) {
  const int64_t lanes = 16 / element_bytes(weight.dtype);
  // Chunks are of the images' lanes; float32 weights beside 16-bit images load 4 at a time.
  const bool window_aligned = weight.kernel == 1 || (weight.r_stride % lanes == 0 &&
                                                     weight.s_stride % lanes == 0);
  const bool vector = is_aligned(weight.data) && weight.in_stride == 1 && window_aligned &&
                      weight.out_stride % lanes == 0 && offset % lanes == 0 &&
                      offset2 % lanes == 0;
  return {weight.data,     weight.out_stride, weight.in_stride,      weight.r_stride,
          weight.s_stride, vector,            weight.dtype != dtype};
}

// The first of the weights in memory, so that no part's offset is negative.
const void* first_weight(const Conv2dCudaForwardArgs& args) {
  const void* first = args.weight.data;
  for (int64_t i = 1; i < args.parts; ++i) {
    if (args.further[i - 1].weight < first) first = args.further[i - 1].weight;
  }
  return first;
}

// All weights of a forward call, seen from the first in memory.
PartMap parts_of(const Conv2dCudaForwardArgs& args) {
  PartMap parts{Divider(args.c_out), {}, {}};
  const auto first = reinterpret_cast<uintptr_t>(first_weight(args));
  auto add = [&](int64_t index, const void* weight, const void* bias) {
    const auto bytes = reinterpret_cast<uintptr_t>(weight) - first;
    parts.offset[index] = static_cast<int64_t>(bytes) / element_bytes(args.weight.dtype);
    parts.bias[index] = bias;
  };
  add(0, args.weight.data, args.bias);
  for (int64_t i = 1; i < args.parts; ++i) {
    add(i, args.further[i - 1].weight, args.further[i - 1].bias);
  }
  return parts;
}

// Adds x and perhaps x2 from source `first` on, and the weight that they meet; returns how many.
int32_t add_sources(ConvOperands& operands, int32_t first, const Conv2dImage& x,
                    const Conv2dImage& x2, const Conv2dWeight& weight, const ImageSize& size,
                    DType dtype) {
  const bool two = x2.data != nullptr;
  operands.source[first] = view_of(x, size, dtype);
  if (two) operands.source[first + 1] = view_of(x2, size, dtype);
  operands.weight[first / kFirstShortcut] =
      view_of(weight, dtype, x.weight_offset, two ? x2.weight_offset : 0);
  return two ? 2 : 1;
}

ConvOperands operands_of(const Conv2dCudaForwardArgs& args) {
  const DType dtype = args.options.dtype;
  const Conv2dCudaShortcut& shortcut = args.shortcut;
  ConvOperands operands{};
  Conv2dWeight weight = args.weight;
  weight.data = const_cast<void*>(first_weight(args));
  operands.source_count =
      add_sources(operands, 0, args.x, args.x2, weight, size_of_x(args.shape), dtype);
  operands.parts = parts_of(args);
  bool& vector = operands.weight[0].vector;
  for (int64_t i = 0; i < args.parts; ++i) {
    vector &= operands.parts.offset[i] % (16 / element_bytes(weight.dtype)) == 0;
  }
  if (shortcut.x.data) {
    operands.shortcut_count = add_sources(operands, kFirstShortcut, shortcut.x, shortcut.x2,
                                          shortcut.weight, size_of_y(args.shape), dtype);
  }
  return operands;
}

// grad_y with the channels of several parts as an image of so many pixels a row.
ImageSize size_of_grad_y(const Conv2dCudaGradXArgs& args) {
  const Conv2dShape& s = args.shape;
  return {s.images, s.out_height, args.parts > 1 ? args.parts : s.out_width};
}

ConvOperands operands_of(const Conv2dCudaGradXArgs& args) {
  const DType dtype = args.options.dtype;
  ConvOperands operands{};
  Conv2dImage grad_y = args.grad_y;
  Conv2dWeight weight = args.weight;
  grad_y.weight_offset = args.c_in_offset;
  if (args.parts > 1) {
    grad_y.w_stride = grad_y.channels;
    weight.s_stride = args.part_stride;
  }
  operands.source_count =
      add_sources(operands, 0, grad_y, {}, weight, size_of_grad_y(args), dtype);
  operands.parts.columns = Divider(args.c_in);
  if (args.parts > 1) {
    operands.weight[0].vector &= args.part_stride % (16 / element_bytes(weight.dtype)) == 0;
  }
  return operands;
}

int64_t out_pixels(const Conv2dShape& shape) {
  return shape.images * shape.out_height * shape.out_width;
}

ConvKind kind_of(const Conv2dCudaForwardArgs& args) {
  if (args.activation == Activation::kGeglu) return ConvKind::kGeglu;
  const bool plain = args.activation == Activation::kNone && !args.gate;
  return plain ? ConvKind::kForward : ConvKind::kActivated;
}

ConvGeometry geometry_of(const Conv2dCudaForwardArgs& args) {
  const Conv2dShape& s = args.shape;
  return {math_of(args.options), kind_of(args), s.images,  s.height,
          s.width,               s.out_height,  s.out_width, args.weight.kernel,
          s.stride,              s.padding,     s.scale,   args.parts,
          s.padding_end};
}

ConvGeometry geometry_of(const Conv2dCudaGradXArgs& args) {
  const Conv2dShape& s = args.shape;
  const ImageSize grad_y = size_of_grad_y(args);
  return {math_of(args.options), ConvKind::kGradient, s.images, grad_y.height,
          grad_y.width,          s.height,            s.width,  args.weight.kernel,
          s.stride,              s.padding,           s.scale,  args.parts,
          s.padding_end};
}

// A product of m rows with `taps` taps of the operands' channels, on the path that serves it.
GemmProblem problem_of(const char* name, const ConvOperands& operands, const ConvGeometry& geometry,
                       int64_t m, int64_t taps, const ConvTerms& terms,
                       const Conv2dCudaOptions& options) {
  GemmProblem problem{};
  problem.name = name;
  problem.math = geometry.math;
  problem.m = m;
  problem.parts = geometry.parts();
  const int64_t blocks = geometry.geglu() ? geometry.weights : problem.parts;
  problem.n = blocks * static_cast<int64_t>(operands.parts.columns.divisor);
  problem.batches = 1;
  problem.aligned = operands.aligned();
  problem.multiprocessors = multiprocessors();
  problem.gradient = geometry.gradient();
  problem.geglu = geometry.geglu();
  problem.hopper_refusal = hopper_refusal(operands, operands.parts.columns.divisor, geometry,
                                          terms, has_sm90a());
  problem.hopper = takes_hopper(problem.hopper_refusal, options.tile);
  if (problem.hopper) {
    problem.batches = geometry.phases();
    problem.m /= problem.batches;
  }
  const int64_t step_bytes = problem.hopper ? kHopperStepBytes : kStepBytes;
  const int64_t step_elements = step_bytes / element_bytes(options.dtype);
  for (int32_t i = 0; i < kMostSources; ++i) {
    const int64_t channels = operands.source[i].channels, times = i < kFirstShortcut ? taps : 1;
    const int64_t steps = blocks_of(channels, step_elements);
    problem.k_steps += times * steps;
    problem.k_padding += times * (steps * step_elements - channels);
  }
  return problem;
}

GemmProblem problem_of(const Conv2dCudaForwardArgs& args) {
  const int64_t taps = int64_t(args.weight.kernel) * args.weight.kernel;
  const ConvTerms terms{args.shift != nullptr, args.residual != nullptr, args.gate != nullptr,
                        args.activation != Activation::kNone};
  return problem_of("sliced_conv2d", operands_of(args), geometry_of(args), out_pixels(args.shape),
                    taps, terms, args.options);
}

// The classes of pixels whose gradients are one convolution each.
int32_t class_count(const Conv2dShape& shape) {
  return shape.stride == 2 && shape.scale == 1 ? 4 : 1;
}

PixelClass pixel_class(const Conv2dShape& shape, int32_t index) {
  const auto width = static_cast<int32_t>(shape.width);
  if (class_count(shape) == 1) return {1, 0, 0, width};
  return {2, index / 2, index % 2, width};
}

TapMap taps_of(const Conv2dCudaGradXArgs& args, const PixelClass& pixels) {
  const int32_t kernel = args.weight.kernel;
  if (args.parts > 1) return part_taps(args.parts);
  if (pixels.every > 1) return class_taps(pixels, kernel, args.shape.padding);
  return gradient_taps(kernel, args.shape.padding, args.shape.scale);
}

// Of one class of pixels.
GemmProblem problem_of(const Conv2dCudaGradXArgs& args, const PixelClass& pixels) {
  const Conv2dShape& shape = args.shape;
  const int64_t m = shape.images * pixels.count(shape.height, pixels.first_h) *
                    pixels.count(shape.width, pixels.first_w);
  return problem_of("sliced_conv2d_grad_x", operands_of(args), geometry_of(args), m,
                    taps_of(args, pixels).count(), {}, args.options);
}

GemmProblem problem_of(const Conv2dCudaGradWeightArgs& args) {
  const DType dtype = args.options.dtype;
  const ImageSize size = size_of_x(args.shape);
  auto aligned = [&](const Conv2dImage& x) { return !x.data || view_of(x, size, dtype).vector; };
  GemmProblem problem{};
  problem.name = "sliced_conv2d_grad_weight";
  problem.math = math_of(args.options);
  problem.m = args.grad_y.channels;
  problem.n = args.x.channels + (args.x2.data ? args.x2.channels : 0);
  problem.parts = 1;
  problem.k_steps = blocks_of(out_pixels(args.shape), kStepBytes / element_bytes(dtype));
  problem.batches = int64_t(args.grad_weight.kernel) * args.grad_weight.kernel;
  problem.aligned = view_of(args.grad_y, size_of_y(args.shape), dtype).vector && aligned(args.x) &&
                    aligned(args.x2);
  problem.multiprocessors = multiprocessors();
  problem.hopper_refusal = "the sm_90a path has no gradient of the weight";
  return problem;
}

GemmChoice choice_of(const GemmProblem& problem, const Conv2dCudaOptions& options) {
  GemmChoice choice = choose_tile(problem, options.tile);
  if (options.splits > 0) choice.splits = options.splits;
  return choice;
}

// Sums of the gradient of a weight that are not yet added up.
int64_t partial_bytes(const GemmProblem& problem, const GemmChoice& choice) {
  return choice.splits > 1 ? 4 * choice.splits * problem.batches * problem.m * problem.n : 0;
}

// Sums of whole tiles that are not yet added up, and the tickets where the caller brings none.
int64_t tile_bytes(const GemmProblem& problem, const GemmChoice& choice) {
  if (choice.splits == 1) return 0;
  const GemmTile& tile = kTiles[choice.tile];
  return 4 * choice.splits * tiles_of(problem, choice.tile) * tile.m * tile.n;
}
int64_t workspace_bytes(const GemmProblem& problem, const Conv2dCudaOptions& options) {
  const GemmChoice choice = choice_of(problem, options);
  if (choice.splits == 1) return 0;
  return tile_bytes(problem, choice) +
         (options.tickets ? 0 : tiles_of(problem, choice.tile) * sizeof(unsigned));
}

// Null, or why the problem cannot run; prints the choice where DDSM_PRINT_CHOICES asks for it.
const char* check(const GemmProblem& problem, const GemmChoice& choice) {
  if (problem.multiprocessors < 1) return "no CUDA device answers";
  if (const char* reason = refusal(problem)) return reason;
  if (problem.hopper && problem.hopper_refusal) return problem.hopper_refusal;
  // A gradient without taps is a product without steps: zeros, in one split.
  const int64_t most_splits = problem.k_steps > 1 ? problem.k_steps : 1;
  if (choice.tile >= kTileCount || choice.splits > most_splits || choice.splits > kMaxSplits) {
    return "the forced tile or number of splits does not exist for this problem";
  }
  if (!has_tile(problem, choice.tile)) return "no kernel for this tile";
  if (!can_split(problem, choice)) return "this tile, or more than 4096 tiles, cannot be split";
  if (getenv("DDSM_PRINT_CHOICES")) {
    char line[256];
    describe(problem, choice, line, sizeof line);
    fprintf(stderr, "%s\n", line);
  }
  return nullptr;
}

PixelMap pixel_map(int64_t height, int64_t width) {
  return {Divider(height * width), Divider(width)};
}

// Calls launch(an object of the type that stands for a way to multiply).
template <class Launch>
const char* with_math(Math math, const Launch& launch) {
  switch (math) {
    case Math::kBFloat16:
      return launch(TensorCores<BFloat16>{});
    case Math::kFloat16:
      return launch(TensorCores<Float16>{});
    case Math::kTf32:
      return launch(TensorCores<float>{});
    case Math::kIeee:
      return launch(FmaUnits{});
  }
  return "unknown way to multiply";
}

const char* run_conv(const ConvParams& params, const GemmProblem& problem,
                     const ConvGeometry& geometry, int32_t tile, void* stream) {
  if (problem.hopper) {
    return run_conv_sm90(params, geometry, tile, problem.multiprocessors, stream);
  }
  return with_math(problem.math, [&](auto math) {
    using MathKind = decltype(math);
    return is_activated(geometry.kind)
               ? launch_conv_activated<MathKind>(params, tile, problem.geglu, problem.aligned,
                                                 stream)
               : launch_conv<MathKind>(params, tile, problem.gradient, problem.aligned, stream);
  });
}

const char* run_grad_weight(const GradWeightParams& params, const GemmProblem& problem,
                            int32_t tile, void* stream) {
  return with_math(problem.math, [&](auto math) {
    return launch_grad_weight<decltype(math)>(params, tile, problem.aligned, stream);
  });
}

// What both directions share.
ConvParams conv_params(const ConvOperands& operands, const GemmProblem& problem,
                       const GemmChoice& choice, const Conv2dCudaOptions& options) {
  ConvParams p{};
  static_cast<ConvOperands&>(p) = operands;
  p.m = static_cast<int32_t>(problem.m);
  p.n = static_cast<int32_t>(problem.geglu ? problem.n / 2 : problem.n);
  p.steps = static_cast<int32_t>(problem.k_steps);
  p.splits = choice.splits;
  p.partial = static_cast<float*>(options.workspace);
  p.tickets = options.tickets;
  p.overlaps = options.overlaps;
  if (choice.splits > 1 && !p.tickets) {
    p.tickets = reinterpret_cast<unsigned*>(p.partial + tile_bytes(problem, choice) / 4);
  }
  return p;
}

// Null, or why the tickets of the workspace could not be cleared.
const char* clear_tickets(const ConvParams& p, const GemmProblem& problem, const GemmChoice& choice,
                          const Conv2dCudaOptions& options, void* stream) {
  if (choice.splits == 1 || options.tickets) return nullptr;
  return clear(p.tickets, tiles_of(problem, choice.tile) * sizeof(unsigned), stream);
}

// Null, or why several weights cannot be.
const char* refusal_of_parts(const Conv2dCudaGradXArgs& args) {
  const Conv2dShape& s = args.shape;
  const bool pixels = args.weight.kernel == 1 && s.stride == 1 && s.scale == 1 && s.width == 1;
  return args.parts == 1 || pixels ? nullptr : "several weights beside rows of several pixels";
}
const char* refusal_of_parts(const Conv2dCudaForwardArgs& args) {
  const bool fits = args.parts == 2 && !args.shift && !args.shortcut.x.data;
  return args.activation != Activation::kGeglu || fits
             ? nullptr
             : "GEGLU needs two weights and neither a shift nor a shortcut";
}

const char* grad_x_of_class(const Conv2dCudaGradXArgs& args, const PixelClass& pixels,
                            void* stream) {
  if (const char* reason = refusal_of_parts(args)) return reason;
  const GemmProblem problem = problem_of(args, pixels);
  if (problem.m == 0) return nullptr;
  const GemmChoice choice = choice_of(problem, args.options);
  if (const char* error = check(problem, choice)) return error;
  const Conv2dShape& shape = args.shape;
  const int64_t lanes = 16 / element_bytes(args.options.dtype);
  ConvParams p = conv_params(operands_of(args), problem, choice, args.options);
  if (const char* error = clear_tickets(p, problem, choice, args.options, stream)) return error;
  p.taps = taps_of(args, pixels);
  // A class's taps already meet the right rows of grad_y, as if at stride 1.
  const int64_t stride = pixels.every > 1 ? 1 : shape.stride;
  p.h = gradient_axis(shape.out_height, stride, shape.scale);
  p.w = gradient_axis(size_of_grad_y(args).width, stride, shape.scale);
  p.rows = pixel_map(pixels.count(shape.height, pixels.first_h),
                     pixels.count(shape.width, pixels.first_w));
  p.epilogue.y = args.grad_x;
  p.epilogue.y_stride = args.c_in;
  p.epilogue.pixels = shape.height * shape.width;
  p.epilogue.pixel_class = pixels;
  p.epilogue.vector = is_aligned(args.grad_x) && args.c_in % lanes == 0;
  return run_conv(p, problem, geometry_of(args), choice.tile, stream);
}

}  // namespace

int64_t conv2d_forward_cuda_moment_classes(const Conv2dCudaForwardArgs& args) {
  return problem_of(args).batches;
}

int64_t conv2d_forward_cuda_workspace_bytes(const Conv2dCudaForwardArgs& args) {
  return head_refusal(args) ? workspace_bytes(problem_of(args), args.options) : 0;
}

int64_t conv2d_grad_x_cuda_workspace_bytes(const Conv2dCudaGradXArgs& args) {
  int64_t most = 0;
  for (int32_t i = 0; i < class_count(args.shape); ++i) {
    const GemmProblem problem = problem_of(args, pixel_class(args.shape, i));
    const int64_t bytes = workspace_bytes(problem, args.options);
    if (bytes > most) most = bytes;
  }
  return most;
}

int64_t conv2d_grad_weight_cuda_workspace_bytes(const Conv2dCudaGradWeightArgs& args) {
  const GemmProblem problem = problem_of(args);
  const int64_t blocks = args.grad_bias ? blocks_of(out_pixels(args.shape), kBiasPixels) : 0;
  return partial_bytes(problem, choice_of(problem, args.options)) +
         4 * blocks * args.grad_y.channels;
}

const char* conv2d_forward_cuda(const Conv2dCudaForwardArgs& args, void* stream) {
  if (const char* reason = refusal_of_parts(args)) return reason;
  const GemmProblem problem = problem_of(args);
  if (problem.m == 0) return nullptr;
  const bool head = !head_refusal(args);
  const GemmChoice choice =
      head ? GemmChoice{kPlainTile, 1} : choice_of(problem, args.options);
  if (const char* error = head ? refusal(problem) : check(problem, choice)) return error;
  const Conv2dShape& shape = args.shape;
  const int64_t lanes = 16 / element_bytes(args.options.dtype);
  ConvParams p = conv_params(operands_of(args), problem, choice, args.options);
  if (const char* error = clear_tickets(p, problem, choice, args.options, stream)) return error;
  p.taps = forward_taps(args.weight.kernel, shape.padding);
  p.h = forward_axis(shape.height, shape.stride, shape.scale);
  p.w = forward_axis(shape.width, shape.stride, shape.scale);
  const bool classes = problem.batches > 1;  // of x's pixels each
  p.rows = classes ? pixel_map(shape.height, shape.width)
                   : pixel_map(shape.out_height, shape.out_width);
  EpilogueParams& e = p.epilogue;
  e.y = args.y;
  e.y_stride = args.y_stride;
  e.activation = args.activation;
  e.gate = args.gate;
  e.gate_stride = args.gate_stride;
  e.shift = args.shift;
  e.residual = args.residual;
  e.shortcut_bias = args.shortcut.bias;
  e.pixel_class.width = static_cast<int32_t>(shape.out_width);
  e.shift_stride = args.shift_stride;
  e.residual_stride = args.residual_stride;
  e.gain = args.gain;
  e.moments = static_cast<Moments*>(args.moments);
  e.pixels = shape.out_height * shape.out_width;
  e.bias_wide = args.weight.dtype != args.options.dtype;
  // Of each part: on sm_90a its columns begin a tile.
  e.vector = is_aligned(args.y) && args.c_out % lanes == 0 && args.y_stride % lanes == 0 &&
             (!args.residual || (is_aligned(args.residual) && args.residual_stride % lanes == 0));
  if (head) return run_conv_head(p, args, problem.math, stream);
  return run_conv(p, problem, geometry_of(args), choice.tile, stream);
}

const char* conv2d_grad_x_cuda(const Conv2dCudaGradXArgs& args, void* stream) {
  const char* error = nullptr;
  for (int32_t i = 0; i < class_count(args.shape) && !error; ++i) {
    error = grad_x_of_class(args, pixel_class(args.shape, i), stream);
  }
  return error;
}

const char* conv2d_grad_weight_cuda(const Conv2dCudaGradWeightArgs& args, void* stream) {
  const GemmProblem problem = problem_of(args);
  if (problem.k_steps == 0) return nullptr;
  const GemmChoice choice = choice_of(problem, args.options);
  if (const char* error = check(problem, choice)) return error;
  const DType dtype = args.options.dtype;
  const Conv2dShape& shape = args.shape;
  const int64_t pixels = out_pixels(shape);
  if (pixels > kMostRows) return kTooManyRows;
  GradWeightParams p{};
  p.grad_y = view_of(args.grad_y, size_of_y(shape), dtype);
  p.source[0] = view_of(args.x, size_of_x(shape), dtype);
  p.source_count = args.x2.data ? 2 : 1;
  if (args.x2.data) p.source[1] = view_of(args.x2, size_of_x(shape), dtype);
  p.grad = view_of(args.grad_weight, dtype, 0, 0);
  p.taps = forward_taps(args.grad_weight.kernel, shape.padding);
  p.h = forward_axis(shape.height, shape.stride, shape.scale);
  p.w = forward_axis(shape.width, shape.stride, shape.scale);
  p.rows = pixel_map(shape.out_height, shape.out_width);
  p.pixels = static_cast<int32_t>(pixels);
  p.c_out = static_cast<int32_t>(problem.m);
  p.c_in = static_cast<int32_t>(problem.n);
  p.steps = static_cast<int32_t>(problem.k_steps);
  p.splits = choice.splits;
  p.partial = static_cast<float*>(args.options.workspace);
  p.grad_bias = args.grad_bias;
  p.bias_partial = p.partial + partial_bytes(problem, choice) / 4;
  return run_grad_weight(p, problem, choice.tile, stream);
}

}  // namespace ddsm
