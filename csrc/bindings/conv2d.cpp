// sliced_conv2d and its gradients on the CPU: checks, allocates, fills Args, calls the kernels.
#include "ddsm/conv2d.h"

#include <torch/csrc/stable/library.h>

#include "conv2d_args.h"

namespace {

using namespace ddsm::binding;
using ddsm::Conv2dAlgo;
using ddsm::Conv2dPanels;
using ddsm::Conv2dShape;
using ddsm::Conv2dWeight;
using ddsm::DType;

// x with adjacent channels, in the compute type if `widen`: x itself where it is that already.
Tensor image_tensor(const Tensor& x, bool widen = true) {
  const bool narrow = widen && x.scalar_type() == ScalarType::BFloat16;
  const ScalarType wanted = narrow ? ScalarType::Float : x.scalar_type();
  if (!narrow) return adjacent_channels(x);
  return torch::stable::to(x, wanted, std::nullopt, std::nullopt, std::nullopt, false, false,
                           torch::headeronly::MemoryFormat::ChannelsLast);
}

// What a weight of this kernel and type can be rearranged for.
Conv2dAlgo algo_of(const char* op, int64_t algo, int64_t kernel, DType dtype) {
  STD_TORCH_CHECK(algo >= 0 && algo <= 3, op, ": algo is ", algo, ", need 0 to 3");
  const Conv2dAlgo result = static_cast<Conv2dAlgo>(algo);
  if (result == Conv2dAlgo::kDirectBf16) {
    STD_TORCH_CHECK(ddsm::conv2d_has(result) && dtype == DType::kBFloat16 &&
                        kernel <= ddsm::kLargestPanelKernel,
                    op, ": algo 3 needs bfloat16 products of the CPU, a bfloat16 weight and a ",
                    "kernel of at most ", ddsm::kLargestPanelKernel);
  } else if (result != Conv2dAlgo::kDirect) {
    STD_TORCH_CHECK(kernel == 3 && dtype != DType::kFloat64, op,
                    ": a Winograd algorithm needs a 3x3 kernel and float32 or bfloat16");
  }
  return result;
}

// The same beside the geometry of a call with image x; gradients have no kDirectBf16.
Conv2dAlgo algo_of(const char* op, int64_t algo, const Conv2dShape& shape, const Tensor& x,
                   const Tensor& weight, bool gradient) {
  const Conv2dAlgo result = algo_of(op, algo, weight.size(2), dtype_of(weight, op));
  if (result == Conv2dAlgo::kDirectBf16) {
    STD_TORCH_CHECK(!gradient && shape.scale == 1 && dtype_of(x, op) == DType::kBFloat16, op,
                    ": algo 3 is for the forward of bfloat16 images that are not enlarged");
  } else if (result != Conv2dAlgo::kDirect) {
    STD_TORCH_CHECK(shape.stride == 1, op, ": a Winograd algorithm needs stride 1");
  }
  return result;
}

// What sliced_conv2d_panels made of this weight for the same algorithm.
Conv2dPanels panels_of(const char* op, const std::optional<Tensor>& panels, const Tensor& weight,
                       Conv2dAlgo algo, const Conv2dShape& shape, bool transposed) {
  Conv2dPanels result{nullptr, weight.size(0), weight.size(1)};
  if (!panels.has_value()) {
    STD_TORCH_CHECK(algo == Conv2dAlgo::kDirect, op, ": algo ", static_cast<int64_t>(algo),
                    " needs panels");
    return result;
  }
  const bool regular =
      shape.scale == 1 || (shape.stride == 1 && shape.padding == weight.size(2) / 2);
  STD_TORCH_CHECK(algo != Conv2dAlgo::kDirect || (regular && !transposed), op,
                  ": no direct panels for this geometry");
  const int64_t scale = algo == Conv2dAlgo::kDirect ? shape.scale : 1;
  STD_TORCH_CHECK(panels->scalar_type() == ScalarType::Float && panels->is_contiguous() &&
                      panels->numel() == ddsm::conv2d_panel_floats(weight.size(2), weight.size(0),
                                                                   weight.size(1), algo, scale,
                                                                   transposed, false),
                  op, ": panels were made for another weight, algorithm or instruction set");
  result.data = panels->const_data_ptr();
  return result;
}

Tensor sliced_conv2d(const Tensor& x, const std::optional<Tensor>& x2, const Tensor& weight,
                     const std::optional<Tensor>& bias, int64_t c_out, int64_t c_in2_offset,
                     int64_t stride, int64_t padding, bool upsample,
                     const std::optional<Tensor>& panels, int64_t algo, bool /*tf32*/,
                     bool pad_end) {
  const char* op = "sliced_conv2d";
  check_cpu_dtypes(op, x, weight);
  check_weight(op, weight);
  check_sources(op, x, x2, weight, c_in2_offset);
  check_bias(op, bias, weight);
  check_c_out(op, c_out, weight);
  ddsm::Conv2dForwardArgs args{};
  args.shape = shape_of(op, x.size(0), x.size(2), x.size(3), weight.size(2), stride, padding,
                        upsample, pad_end);
  check_output(op, args.shape, c_out);
  Tensor y = empty_nhwc(x, x.size(0), c_out, args.shape.out_height, args.shape.out_width);
  if (y.numel() == 0) return y;
  args.algo = algo_of(op, algo, args.shape, x, weight, false);
  args.panels = panels_of(op, panels, weight, args.algo, args.shape, false);
  const bool widen = args.algo == Conv2dAlgo::kDirect;
  const Tensor source = image_tensor(x, widen);
  const Tensor source2 = x2.has_value() ? image_tensor(*x2, widen) : source;
  const Tensor bias_row = contiguous_or(bias, weight);
  args.x = image_of(source, 0);
  if (x2.has_value()) args.x2 = image_of(source2, c_in2_offset);
  args.weight = weight_of(op, weight);
  args.bias = bias.has_value() ? bias_row.const_data_ptr() : nullptr;
  args.y = y.mutable_data_ptr();
  args.y_dtype = dtype_of(y, op);
  args.c_out = c_out;
  args.parts = args.residual_scale = 1;
  check_memory(op, ddsm::conv2d_forward(args));
  return y;
}

Tensor sliced_conv2d_grad_x(const Tensor& grad_y, const Tensor& weight, int64_t c_in,
                            int64_t c_in_offset, int64_t height, int64_t width, int64_t stride,
                            int64_t padding, bool upsample, const std::optional<Tensor>& panels,
                            int64_t algo, bool /*tf32*/, bool pad_end) {
  const char* op = "sliced_conv2d_grad_x";
  check_cpu_dtypes(op, grad_y, weight);
  check_weight(op, weight);
  ddsm::Conv2dGradXArgs args{};
  args.shape = grad_x_shape(op, grad_y, weight, c_in, c_in_offset, height, width, stride, padding,
                            upsample, pad_end);
  Tensor grad_x = empty_nhwc(grad_y, grad_y.size(0), c_in, height, width);
  if (grad_x.numel() == 0) return grad_x;
  args.algo = algo_of(op, algo, args.shape, grad_y, weight, true);
  STD_TORCH_CHECK(args.algo == Conv2dAlgo::kDirect || !upsample, op,
                  ": a Winograd algorithm takes no upsampling");
  args.panels = panels_of(op, panels, weight, args.algo, args.shape, true);
  const Tensor source = image_tensor(grad_y, args.algo == Conv2dAlgo::kDirect);
  args.grad_y = image_of(source, 0);
  args.weight = weight_of(op, weight);
  args.grad_x = grad_x.mutable_data_ptr();
  args.grad_x_dtype = dtype_of(grad_x, op);
  args.c_in = c_in;
  args.c_in_offset = c_in_offset;
  check_memory(op, ddsm::conv2d_grad_x(args));
  return grad_x;
}

void sliced_conv2d_grad_weight(const Tensor& grad_y, const Tensor& x,
                               const std::optional<Tensor>& x2, int64_t c_in2_offset,
                               int64_t stride, int64_t padding, bool upsample,
                               const Tensor& grad_weight, const std::optional<Tensor>& grad_bias,
                               int64_t algo, bool /*tf32*/, bool pad_end) {
  const char* op = "sliced_conv2d_grad_weight";
  check_cpu_dtypes(op, grad_y, grad_weight);
  check_weight(op, grad_weight);
  check_sources(op, x, x2, grad_weight, c_in2_offset);
  check_grad_bias(op, grad_bias, grad_weight);
  ddsm::Conv2dGradWeightArgs args{};
  args.shape = grad_weight_shape(op, grad_y, x, grad_weight, stride, padding, upsample, pad_end);
  if (grad_y.numel() == 0) return;
  args.algo = algo_of(op, algo, args.shape, x, grad_weight, true);
  const Tensor gradient = image_tensor(grad_y), source = image_tensor(x);
  const Tensor source2 = x2.has_value() ? image_tensor(*x2) : source;
  args.grad_y = image_of(gradient, 0);
  args.x = image_of(source, 0);
  if (x2.has_value()) args.x2 = image_of(source2, c_in2_offset);
  args.compute = dtype_of(gradient, op);
  args.grad_weight = weight_of(op, grad_weight, grad_weight.mutable_data_ptr());
  args.grad_bias = grad_data_or_null(grad_bias);
  check_memory(op, ddsm::conv2d_grad_weight(args));
}

void sliced_conv2d_panels(const Tensor& weights, int64_t algo, bool upsample, bool transposed,
                          const Tensor& panels, bool glu) {
  const char* op = "sliced_conv2d_panels";
  STD_TORCH_CHECK(!glu || (weights.dim() == 5 && weights.size(0) == 2), op,
                  ": weight is not [2, c_out_max, c_in_max, k, k]");
  check_elements(op, "weight", weights);
  const Tensor weight = glu ? torch::stable::select(weights, 0, 0) : weights;
  check_weight(op, weight);
  const DType dtype = dtype_of(weight, op);
  STD_TORCH_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16, op,
                  ": weight is not float32 or bfloat16");
  STD_TORCH_CHECK(weight.numel() > 0 && weight.size(2) <= ddsm::kLargestPanelKernel &&
                      !((algo == 0 || algo == 3) && transposed) && !(algo == 3 && upsample) &&
                      !(glu && algo != 0 && algo != 3),
                  op, ": no panels of this kind");
  Conv2dWeight from = weight_of(op, weight);
  if (glu) from.block_stride = weights.stride(0);
  const Conv2dAlgo kind = algo_of(op, algo, weight.size(2), dtype);
  const int64_t c_out = weight.size(0), c_in = weight.size(1), scale = upsample ? 2 : 1;
  STD_TORCH_CHECK(
      panels.scalar_type() == ScalarType::Float && panels.is_contiguous() &&
          panels.numel() ==
              ddsm::conv2d_panel_floats(from.kernel, c_out, c_in, kind, scale, transposed, glu),
      op, ": panels is not a float32 tensor of conv2d_panel_floats elements");
  ddsm::conv2d_make_panels(from, c_out, c_in, kind, scale, transposed, glu,
                           panels.mutable_data_ptr());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CPU, m) {
  m.impl("sliced_conv2d", TORCH_BOX(&sliced_conv2d));
  m.impl("sliced_conv2d_panels", TORCH_BOX(&sliced_conv2d_panels));
  m.impl("sliced_conv2d_grad_x", TORCH_BOX(&sliced_conv2d_grad_x));
  m.impl("sliced_conv2d_grad_weight", TORCH_BOX(&sliced_conv2d_grad_weight));
}
