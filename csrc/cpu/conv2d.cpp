// sliced_conv2d and its gradients as matrix products over pixels (gemm.h).
#include "ddsm/conv2d.h"

#include "conv2d_plan.h"
#include "gemm.h"

namespace ddsm {
namespace {

GemmSource source_of(const Conv2dImage& image, int64_t height, int64_t width) {
  return {image.data, image.n_stride, image.h_stride, image.w_stride,
          height,     width,          image.channels, image.weight_offset};
}

// Lanes run over output channels, depth over input channels.
GemmWeight forward_weight(const Conv2dWeight& weight) {
  return {weight.data,     weight.out_stride, weight.in_stride,
          weight.r_stride, weight.s_stride,   weight.kernel};
}

// A phase of an image with the given strides in elements.
GemmPhase gemm_phase(const Conv2dPhase& phase, int64_t row_stride, int64_t col_stride) {
  return {phase.rows,
          phase.cols,
          phase.first_row * row_stride + phase.first_col * col_stride,
          phase.pixel_step * row_stride,
          phase.pixel_step * col_stride,
          phase.input_step,
          static_cast<int32_t>(phase.taps.size()),
          phase.taps.data()};
}

DType compute_of(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

}  // namespace

bool conv2d_forward(const Conv2dForwardArgs& args) {
  const Conv2dShape& shape = args.shape;
  GemmProblem problem{};
  problem.compute = compute_of(args.y_dtype);
  problem.weight_dtype = args.weight.dtype;
  problem.y_dtype = args.y_dtype;
  problem.n_sources = args.x2.data ? 2 : 1;
  problem.sources[0] = source_of(args.x, shape.height, shape.width);
  problem.sources[1] = source_of(args.x2, shape.height, shape.width);
  problem.weight = forward_weight(args.weight);
  problem.bias = args.bias;
  problem.y = args.y;
  problem.images = shape.images;
  problem.y_n_stride = shape.out_height * shape.out_width * args.c_out;
  problem.lanes = args.c_out;
  for (const Conv2dPhase& phase : plan_forward(shape, args.weight.kernel)) {
    if (!gemm_multiply(problem, gemm_phase(phase, shape.out_width * args.c_out, args.c_out))) {
      return false;
    }
  }
  return true;
}

bool conv2d_grad_x(const Conv2dGradXArgs& args) {
  const Conv2dShape& shape = args.shape;
  GemmProblem problem{};
  problem.compute = compute_of(args.grad_x_dtype);
  problem.weight_dtype = args.weight.dtype;
  problem.y_dtype = args.grad_x_dtype;
  problem.n_sources = 1;
  problem.sources[0] = source_of(args.grad_y, shape.out_height, shape.out_width);
  const Conv2dWeight& weight = args.weight;
  const int64_t element = weight.dtype == DType::kFloat64   ? 8
                          : weight.dtype == DType::kFloat32 ? 4
                                                            : 2;
  problem.weight = {static_cast<char*>(weight.data) + args.c_in_offset * weight.in_stride * element,
                    weight.in_stride, weight.out_stride, weight.r_stride, weight.s_stride,
                    weight.kernel};
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
  GemmProblem problem{};
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
  for (const Conv2dPhase& phase : plan_forward(shape, args.grad_weight.kernel)) {
    const GemmPhase gemm = gemm_phase(phase, args.grad_y.h_stride, args.grad_y.w_stride);
    if (!gemm_accumulate(problem, gemm)) return false;
    if (args.grad_bias) gemm_accumulate_bias(problem, gemm, args.grad_bias);
  }
  return true;
}

}  // namespace ddsm
