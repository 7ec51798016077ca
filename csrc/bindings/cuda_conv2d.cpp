// sliced_conv2d and its gradients on CUDA: checks, allocates, fills Args, launches on torch's
// current stream. float32 products are tf32, as in torch's own convolutions by default.
#include <torch/csrc/stable/library.h>

#include "cuda_conv2d_args.h"

namespace {

using namespace ddsm::binding;
using ddsm::Conv2dImage;
using ddsm::Conv2dShape;
using ddsm::Conv2dWeight;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

void check_weight(const char* op, const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == weight.size(3) && weight.size(2) >= 1, op,
                  ": weight is not [c_out_max, c_in_max, k, k]");
}

void check_image(const char* op, const Tensor& x, const Tensor& weight, int64_t offset) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": an image has ", x.dim(), " dimensions, need 4");
  STD_TORCH_CHECK(x.size(1) >= 1 && offset >= 0 && offset <= weight.size(1) - x.size(1), op, ": ",
                  x.size(1), " channels at weight offset ", offset, ", weight has ",
                  weight.size(1), " input channels");
}

void check_sources(const char* op, const Tensor& x, const std::optional<Tensor>& x2,
                   const Tensor& weight, int64_t c_in2_offset) {
  check_image(op, x, weight, 0);
  if (!x2.has_value()) return;
  check_same_device(op, x, *x2);
  check_image(op, *x2, weight, c_in2_offset);
  STD_TORCH_CHECK(x2->scalar_type() == x.scalar_type() && x2->size(0) == x.size(0) &&
                      x2->size(2) == x.size(2) && x2->size(3) == x.size(3) &&
                      c_in2_offset >= x.size(1),
                  op, ": x2 does not match x, or its channels overlap x's in the weight");
}

// `algo` forces a tile of csrc/cuda/tile_choice.h, 1 + its index, for tests and benchmarks; 0 lets
// it choose. Panels are rearranged weights of the CPU's algorithms; here the weight is read in place.
int32_t forced_tile(const char* op, const std::optional<Tensor>& panels, int64_t algo) {
  STD_TORCH_CHECK(!panels.has_value() && algo >= 0 && algo < 100, op, ": algo is ", algo,
                  panels.has_value() ? " with panels" : "",
                  "; the CUDA kernels need 0, or 1 + the index of a tile, and no panels");
  return static_cast<int32_t>(algo);
}

Conv2dShape shape_of(const char* op, int64_t images, int64_t height, int64_t width, int64_t kernel,
                     int64_t stride, int64_t padding, bool upsample) {
  STD_TORCH_CHECK(stride == 1 || stride == 2, op, ": stride is ", stride, ", need 1 or 2");
  STD_TORCH_CHECK(padding >= 0 && padding < kernel, op, ": padding is ", padding,
                  ", need 0 <= padding < ", kernel);
  const int64_t scale = upsample ? 2 : 1, reach = 2 * padding - kernel;
  // The upper bound keeps a raw call's numbers from overflowing here.
  constexpr int64_t most = int64_t{1} << 40;
  STD_TORCH_CHECK(height >= 1 && width >= 1 && height <= most && width <= most &&
                      height * scale + reach >= 0 && width * scale + reach >= 0,
                  op, ": ", height, "x", width, " pixels are too few or too many for the kernel");
  return {images,
          height,
          width,
          (height * scale + reach) / stride + 1,
          (width * scale + reach) / stride + 1,
          stride,
          padding,
          scale};
}

// x with adjacent channels: x itself where it is that already.
Tensor image_tensor(const Tensor& x) {
  if (x.size(1) == 1 || x.stride(1) == 1) return x;
  return torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast);
}

Conv2dImage image_of(const Tensor& x, int64_t weight_offset) {
  return {x.const_data_ptr(), x.stride(0), x.stride(2), x.stride(3), x.size(1), weight_offset};
}

Conv2dWeight weight_of(const char* op, const Tensor& weight, void* data) {
  return {data,
          dtype_of(weight, op),
          weight.stride(0),
          weight.stride(1),
          weight.stride(2),
          weight.stride(3),
          static_cast<int32_t>(weight.size(2))};
}

Tensor sliced_conv2d(const Tensor& x, const std::optional<Tensor>& x2, const Tensor& weight,
                     const std::optional<Tensor>& bias, int64_t c_out, int64_t c_in2_offset,
                     int64_t stride, int64_t padding, bool upsample,
                     const std::optional<Tensor>& panels, int64_t algo) {
  const char* op = "sliced_conv2d";
  check_weight(op, weight);
  check_operands(op, x, weight);
  check_sources(op, x, x2, weight, c_in2_offset);
  check_bias(op, bias, weight);
  check_c_out(op, c_out, weight);
  const DeviceGuard guard(x.get_device_index());
  ddsm::Conv2dCudaForwardArgs args{};
  args.shape = shape_of(op, x.size(0), x.size(2), x.size(3), weight.size(2), stride, padding,
                        upsample);
  Tensor y = empty_nhwc(x, x.size(0), c_out, args.shape.out_height, args.shape.out_width);
  if (y.numel() == 0) return y;
  const Tensor source = image_tensor(x), source2 = x2.has_value() ? image_tensor(*x2) : source;
  const Tensor bias_row = contiguous_or(bias, weight);
  args.options.dtype = dtype_of(x, op);
  args.options.tile = forced_tile(op, panels, algo);
  args.x = image_of(source, 0);
  if (x2.has_value()) args.x2 = image_of(source2, c_in2_offset);
  args.weight = weight_of(op, weight, const_cast<void*>(weight.const_data_ptr()));
  args.bias = bias.has_value() ? bias_row.const_data_ptr() : nullptr;
  args.y = y.mutable_data_ptr();
  args.c_out = c_out;
  run_conv2d(op, args, x, ddsm::conv2d_forward_cuda_workspace_bytes, ddsm::conv2d_forward_cuda);
  return y;
}

Tensor sliced_conv2d_grad_x(const Tensor& grad_y, const Tensor& weight, int64_t c_in,
                            int64_t c_in_offset, int64_t height, int64_t width, int64_t stride,
                            int64_t padding, bool upsample, const std::optional<Tensor>& panels,
                            int64_t algo) {
  const char* op = "sliced_conv2d_grad_x";
  check_weight(op, weight);
  check_operands(op, grad_y, weight);
  STD_TORCH_CHECK(grad_y.dim() == 4 && grad_y.size(1) >= 1 && grad_y.size(1) <= weight.size(0), op,
                  ": grad_y does not match weight");
  STD_TORCH_CHECK(c_in >= 1 && c_in_offset >= 0 && c_in_offset <= weight.size(1) - c_in, op,
                  ": c_in is ", c_in, " at offset ", c_in_offset, ", weight has ", weight.size(1),
                  " input channels");
  const DeviceGuard guard(grad_y.get_device_index());
  ddsm::Conv2dCudaGradXArgs args{};
  args.shape = shape_of(op, grad_y.size(0), height, width, weight.size(2), stride, padding,
                        upsample);
  STD_TORCH_CHECK(grad_y.size(2) == args.shape.out_height &&
                      grad_y.size(3) == args.shape.out_width,
                  op, ": grad_y is not of the output's height and width");
  Tensor grad_x = empty_nhwc(grad_y, grad_y.size(0), c_in, height, width);
  if (grad_x.numel() == 0) return grad_x;
  const Tensor source = image_tensor(grad_y);
  args.options.dtype = dtype_of(grad_y, op);
  args.options.tile = forced_tile(op, panels, algo);
  args.grad_y = image_of(source, 0);
  args.weight = weight_of(op, weight, const_cast<void*>(weight.const_data_ptr()));
  args.grad_x = grad_x.mutable_data_ptr();
  args.c_in = c_in;
  args.c_in_offset = c_in_offset;
  run_conv2d(op, args, grad_y, ddsm::conv2d_grad_x_cuda_workspace_bytes, ddsm::conv2d_grad_x_cuda);
  return grad_x;
}

void sliced_conv2d_grad_weight(const Tensor& grad_y, const Tensor& x,
                               const std::optional<Tensor>& x2, int64_t c_in2_offset,
                               int64_t stride, int64_t padding, bool upsample,
                               const Tensor& grad_weight, const std::optional<Tensor>& grad_bias,
                               int64_t algo) {
  const char* op = "sliced_conv2d_grad_weight";
  check_weight(op, grad_weight);
  check_operands(op, grad_y, grad_weight);
  check_same_device(op, grad_y, x);
  check_sources(op, x, x2, grad_weight, c_in2_offset);
  check_grad_bias(op, grad_bias, grad_weight);
  const DeviceGuard guard(x.get_device_index());
  ddsm::Conv2dCudaGradWeightArgs args{};
  args.shape = shape_of(op, x.size(0), x.size(2), x.size(3), grad_weight.size(2), stride, padding,
                        upsample);
  STD_TORCH_CHECK(grad_y.dim() == 4 && grad_y.scalar_type() == x.scalar_type() &&
                      grad_y.size(0) == x.size(0) && grad_y.size(1) >= 1 &&
                      grad_y.size(1) <= grad_weight.size(0) &&
                      grad_y.size(2) == args.shape.out_height &&
                      grad_y.size(3) == args.shape.out_width,
                  op, ": grad_y does not match x and grad_weight");
  if (grad_y.numel() == 0) return;
  const Tensor gradient = image_tensor(grad_y), source = image_tensor(x);
  const Tensor source2 = x2.has_value() ? image_tensor(*x2) : source;
  args.options.dtype = dtype_of(x, op);
  args.options.tile = forced_tile(op, std::nullopt, algo);
  args.grad_y = image_of(gradient, 0);
  args.x = image_of(source, 0);
  if (x2.has_value()) args.x2 = image_of(source2, c_in2_offset);
  args.grad_weight = weight_of(op, grad_weight, grad_weight.mutable_data_ptr());
  args.grad_bias = grad_bias.has_value() ? grad_bias->mutable_data_ptr() : nullptr;
  run_conv2d(op, args, x, ddsm::conv2d_grad_weight_cuda_workspace_bytes,
             ddsm::conv2d_grad_weight_cuda);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sliced_conv2d", TORCH_BOX(&sliced_conv2d));
  m.impl("sliced_conv2d_grad_x", TORCH_BOX(&sliced_conv2d_grad_x));
  m.impl("sliced_conv2d_grad_weight", TORCH_BOX(&sliced_conv2d_grad_weight));
}
