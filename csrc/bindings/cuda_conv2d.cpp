// sliced_conv2d and its gradients on CUDA: checks, allocates, fills Args, launches on torch's
// current stream.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "activation_args.h"
#include "conv2d_args.h"
#include "cuda_conv2d_args.h"
#include "ddsm/group_norm_cuda.h"

namespace {

using namespace ddsm::binding;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

// `algo` forces a tile of csrc/cuda/tile_choice.h, 1 + its index, and 100 times a number of K
// splits, for tests and benchmarks; 0 of either lets it choose. Panels are rearranged weights of
// the CPU's algorithms; here a weight stays in place.
void force_choice(const char* op, const std::optional<Tensor>& panels, int64_t algo,
                  ddsm::Conv2dCudaOptions& options) {
  STD_TORCH_CHECK(!panels.has_value() && algo >= 0 && algo < 10000, op, ": algo is ", algo,
                  panels.has_value() ? " with panels" : "",
                  "; the CUDA kernels need 0, or 1 + the index of a tile + 100 * K splits, and no "
                  "panels");
  options.tile = static_cast<int32_t>(algo % 100);
  options.splits = static_cast<int32_t>(algo / 100);
}

// The arguments that every forward call has, of one weight until more are added, checked; the
// tensors keep the memory they point to.
struct Forward {
  ddsm::Conv2dCudaForwardArgs args;
  Tensor source, source2;
};

Forward forward_of(const char* op, const Tensor& x, const std::optional<Tensor>& x2,
                   const Tensor& weight, int64_t c_out, int64_t c_in2_offset, int64_t stride,
                   int64_t padding, bool upsample, bool tf32, bool pad_end) {
  check_weight(op, weight);
  check_same_device(op, x, weight);
  check_dtypes(op, x, weight);
  check_sources(op, x, x2, weight, c_in2_offset);
  check_c_out(op, c_out, weight);
  const Tensor source = adjacent_channels(x);
  Forward forward{{}, source, x2.has_value() ? adjacent_channels(*x2) : source};
  ddsm::Conv2dCudaForwardArgs& args = forward.args;
  args.options = options_of(op, x, tf32);
  args.shape = shape_of(op, x.size(0), x.size(2), x.size(3), weight.size(2), stride, padding,
                        upsample, pad_end);
  check_output(op, args.shape, c_out);
  args.x = image_of(forward.source, 0);
  if (x2.has_value()) args.x2 = image_of(forward.source2, c_in2_offset);
  args.weight = weight_of(op, weight);
  args.parts = 1;
  args.c_out = c_out;
  return forward;
}

Tensor empty_output(const Tensor& x, const ddsm::Conv2dCudaForwardArgs& args) {
  const int64_t parts = args.activation == ddsm::Activation::kGeglu ? 1 : args.parts;
  return empty_nhwc(x, x.size(0), parts * args.c_out, args.shape.out_height, args.shape.out_width);
}

void run_forward(const char* op, ddsm::Conv2dCudaForwardArgs& args, const Tensor& x, Tensor& y) {
  args.y = y.mutable_data_ptr();
  args.y_stride = y.size(1);
  run_conv2d(op, args, x, ddsm::conv2d_forward_cuda_workspace_bytes, ddsm::conv2d_forward_cuda);
}

Tensor sliced_conv2d(const Tensor& x, const std::optional<Tensor>& x2, const Tensor& weight,
                     const std::optional<Tensor>& bias, int64_t c_out, int64_t c_in2_offset,
                     int64_t stride, int64_t padding, bool upsample,
                     const std::optional<Tensor>& panels, int64_t algo, bool tf32, bool pad_end) {
  const char* op = "sliced_conv2d";
  const DeviceGuard guard(x.get_device_index());
  Forward forward = forward_of(op, x, x2, weight, c_out, c_in2_offset, stride, padding, upsample,
                               tf32, pad_end);
  force_choice(op, panels, algo, forward.args.options);
  check_bias(op, bias, weight);
  Tensor y = empty_output(x, forward.args);
  if (y.numel() == 0) return y;
  const Tensor bias_row = contiguous_or(bias, weight);
  forward.args.bias = bias.has_value() ? bias_row.const_data_ptr() : nullptr;
  run_forward(op, forward.args, x, y);
  return y;
}

// Weights that are read as one, each or none with a bias.
void check_parts(const char* op, const std::vector<Tensor>& weights,
                 const std::vector<Tensor>& biases, ddsm::Activation activation) {
  const size_t count = weights.size();
  STD_TORCH_CHECK(count >= 1 && count <= ddsm::kConvParts &&
                      (biases.empty() || biases.size() == count),
                  op, ": ", count, " weights and ", biases.size(), " biases; need 1 to ",
                  ddsm::kConvParts, " of each, or no biases");
  STD_TORCH_CHECK(activation != ddsm::Activation::kGeglu || count == 2, op, ": ", count,
                  " weights; geglu needs 2");
  for (size_t i = 0; i < count; ++i) {
    bool same = weights[i].dim() == 4 && weights[i].scalar_type() == weights[0].scalar_type();
    for (int64_t d = 0; same && d < 4; ++d) {
      same = weights[i].size(d) == weights[0].size(d) &&
             (weights[i].size(d) == 1 || weights[i].stride(d) == weights[0].stride(d));
    }
    STD_TORCH_CHECK(same, op, ": the weights differ in shape, strides or dtype; need equal ones");
    check_same_device(op, weights[0], weights[i]);
    if (!biases.empty()) check_dense_bias(op, biases[i], weights[i]);
  }
}

void add_parts(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
               ddsm::Conv2dCudaForwardArgs& args) {
  const auto bias = [&](size_t i) {
    return biases.empty() ? nullptr : biases[i].const_data_ptr();
  };
  args.bias = bias(0);
  args.parts = static_cast<int64_t>(weights.size());
  for (size_t i = 1; i < weights.size(); ++i) {
    args.further[i - 1] = {weights[i].const_data_ptr(), bias(i)};
  }
}

// Checks what is added to the sums and says where it lies; the result keeps its memory.
Tensor add_residual(const char* op, const Tensor& residual, const Tensor& x, const Tensor& y,
                    ddsm::Conv2dCudaForwardArgs& args) {
  check_same_device(op, x, residual);
  bool same = residual.dim() == 4 && residual.scalar_type() == y.scalar_type();
  for (int64_t d = 0; same && d < 4; ++d) same = residual.size(d) == y.size(d);
  STD_TORCH_CHECK(same, op, ": residual is not of the output's shape and dtype");
  const Tensor rows = nhwc(residual);
  args.residual = rows.const_data_ptr();
  args.residual_stride = pixel_stride_of(rows);
  return rows;
}

void add_shift(const char* op, const Tensor& shift, const Tensor& x, const Tensor& y,
               ddsm::Conv2dCudaForwardArgs& args) {
  STD_TORCH_CHECK(args.activation != ddsm::Activation::kGeglu, op,
                  ": a shift beside geglu; need none");
  check_image_rows(op, "shift", shift, x, y.size(0), y.size(1));
  args.shift = shift.const_data_ptr();
  args.shift_stride = shift.stride(0);
}

void add_gate(const char* op, const Tensor& gate, const Tensor& x, const Tensor& y,
              ddsm::Conv2dCudaForwardArgs& args) {
  check_image_rows(op, "gate", gate, x, y.size(0), y.size(1));
  args.gate = gate.const_data_ptr();
  args.gate_stride = gate.stride(0);
}

// Checks weight, bias, x and perhaps x2 of a shortcut; the result keeps the memory that is read.
std::vector<Tensor> add_shortcut(const char* op, const std::vector<Tensor>& shortcut,
                                 int64_t c_in2_offset, const Tensor& y,
                                 ddsm::Conv2dCudaForwardArgs& args) {
  if (shortcut.empty()) return {};
  const size_t count = shortcut.size();
  STD_TORCH_CHECK((count == 3 || count == 4) && args.parts == 1, op, ": a shortcut of ", count,
                  " tensors beside ", args.parts,
                  " weights; need weight, bias, x and perhaps x2 beside one weight");
  const Tensor &weight = shortcut[0], &bias = shortcut[1], &x = shortcut[2];
  check_weight(op, weight);
  STD_TORCH_CHECK(weight.size(2) == 1 && weight.size(0) >= y.size(1) &&
                      dtype_of(weight, op) == args.weight.dtype,
                  op, ": the shortcut's weight is not [", y.size(1), " or more, c_in_max, 1, 1] of "
                  "the other weight's dtype");
  std::optional<Tensor> x2;
  if (count == 4) x2 = shortcut[3];
  check_same_device(op, y, weight);
  check_same_device(op, y, x);
  check_sources(op, x, x2, weight, c_in2_offset);
  check_dense_bias(op, bias, weight);
  STD_TORCH_CHECK(x.scalar_type() == y.scalar_type() && x.size(0) == y.size(0) &&
                      x.size(2) == y.size(2) && x.size(3) == y.size(3),
                  op, ": the shortcut's x is not of the output's dtype, images and pixels");
  std::vector<Tensor> rows{adjacent_channels(x)};
  args.shortcut.x = image_of(rows[0], 0);
  if (x2.has_value()) {
    rows.push_back(adjacent_channels(*x2));
    args.shortcut.x2 = image_of(rows[1], c_in2_offset);
  }
  args.shortcut.weight = weight_of(op, weight);
  args.shortcut.bias = bias.const_data_ptr();
  return rows;
}

void add_tickets(const char* op, const std::optional<Tensor>& tickets, const Tensor& x,
                 ddsm::Conv2dCudaForwardArgs& args) {
  if (!tickets.has_value()) return;
  STD_TORCH_CHECK(same_device(*tickets, x) && tickets->scalar_type() == ScalarType::Int &&
                      tickets->is_contiguous() && tickets->numel() == ddsm::kConvTickets,
                  op, ": tickets are not ", ddsm::kConvTickets, " int32 numbers on x's device");
  args.options.tickets = static_cast<unsigned*>(tickets->mutable_data_ptr());
}

// [N, classes of pixels, moment blocks, bytes of all channels]
Tensor empty_moments(bool wanted, const Tensor& y, const ddsm::Conv2dCudaForwardArgs& args) {
  if (!wanted) return empty_scratch(0, y);
  const int64_t classes = ddsm::conv2d_forward_cuda_moment_classes(args);
  const int64_t pixels = args.shape.out_height * args.shape.out_width / classes;
  const int64_t block_bytes = 8 * y.size(1);
  const int64_t blocks = ddsm::group_norm_cuda_moments_bytes(1, pixels, y.size(1)) / block_bytes;
  return empty_contiguous(y, ScalarType::Byte, {y.size(0), classes, blocks, block_bytes});
}

std::tuple<Tensor, Tensor> sliced_conv2d_fused(
    const Tensor& x, const std::optional<Tensor>& x2, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases, int64_t c_out, int64_t c_in2_offset, int64_t stride,
    int64_t padding, bool upsample, const std::optional<Tensor>& shift,
    const std::optional<Tensor>& residual, const std::vector<Tensor>& shortcut,
    int64_t shortcut_c_in2_offset, bool with_moments, const std::optional<Tensor>& tickets,
    bool overlaps, bool tf32, double gain, bool pad_end, int64_t activation,
    const std::optional<Tensor>& gate) {
  const char* op = "sliced_conv2d_fused";
  const ddsm::Activation kind = activation_of(op, activation);
  check_parts(op, weights, biases, kind);
  const DeviceGuard guard(x.get_device_index());
  Forward forward = forward_of(op, x, x2, weights[0], c_out, c_in2_offset, stride, padding,
                               upsample, tf32, pad_end);
  ddsm::Conv2dCudaForwardArgs& args = forward.args;
  args.activation = kind;
  add_parts(weights, biases, args);
  Tensor y = empty_output(x, args);
  if (shift.has_value()) add_shift(op, *shift, x, y, args);
  if (gate.has_value()) add_gate(op, *gate, x, y, args);
  std::vector<Tensor> shortcut_rows = add_shortcut(op, shortcut, shortcut_c_in2_offset, y, args);
  add_tickets(op, tickets, x, args);
  args.options.overlaps = overlaps;
  args.gain = static_cast<float>(gain);
  const Tensor residual_rows = residual.has_value() ? add_residual(op, *residual, x, y, args) : y;
  Tensor moments = empty_moments(with_moments, y, args);
  if (with_moments) args.moments = moments.mutable_data_ptr();
  if (y.numel() > 0) run_forward(op, args, x, y);
  return {y, moments};
}

Tensor sliced_conv2d_grad_x(const Tensor& grad_y, const Tensor& weight, int64_t c_in,
                            int64_t c_in_offset, int64_t height, int64_t width, int64_t stride,
                            int64_t padding, bool upsample, const std::optional<Tensor>& panels,
                            int64_t algo, bool tf32, bool pad_end) {
  const char* op = "sliced_conv2d_grad_x";
  check_weight(op, weight);
  check_same_device(op, grad_y, weight);
  check_dtypes(op, grad_y, weight);
  const DeviceGuard guard(grad_y.get_device_index());
  ddsm::Conv2dCudaGradXArgs args{};
  args.shape = grad_x_shape(op, grad_y, weight, c_in, c_in_offset, height, width, stride, padding,
                            upsample, pad_end);
  Tensor grad_x = empty_nhwc(grad_y, grad_y.size(0), c_in, height, width);
  if (grad_x.numel() == 0) return grad_x;
  const Tensor source = adjacent_channels(grad_y);
  args.options = options_of(op, grad_y, tf32);
  force_choice(op, panels, algo, args.options);
  args.grad_y = image_of(source, 0);
  args.weight = weight_of(op, weight);
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
                               int64_t algo, bool tf32, bool pad_end) {
  const char* op = "sliced_conv2d_grad_weight";
  check_weight(op, grad_weight);
  check_same_device(op, grad_y, grad_weight);
  check_dtypes(op, grad_y, grad_weight);
  check_same_device(op, grad_y, x);
  check_sources(op, x, x2, grad_weight, c_in2_offset);
  check_grad_bias(op, grad_bias, grad_weight);
  const DeviceGuard guard(x.get_device_index());
  ddsm::Conv2dCudaGradWeightArgs args{};
  args.shape = grad_weight_shape(op, grad_y, x, grad_weight, stride, padding, upsample, pad_end);
  if (grad_y.numel() == 0) return;
  const Tensor gradient = adjacent_channels(grad_y), source = adjacent_channels(x);
  const Tensor source2 = x2.has_value() ? adjacent_channels(*x2) : source;
  args.options = options_of(op, x, tf32);
  force_choice(op, std::nullopt, algo, args.options);
  args.grad_y = image_of(gradient, 0);
  args.x = image_of(source, 0);
  if (x2.has_value()) args.x2 = image_of(source2, c_in2_offset);
  args.grad_weight = weight_of(op, grad_weight, grad_weight.mutable_data_ptr());
  args.grad_bias = grad_data_or_null(grad_bias);
  run_conv2d(op, args, x, ddsm::conv2d_grad_weight_cuda_workspace_bytes,
             ddsm::conv2d_grad_weight_cuda);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddsm_ext, CUDA, m) {
  m.impl("sliced_conv2d", TORCH_BOX(&sliced_conv2d));
  m.impl("sliced_conv2d_fused", TORCH_BOX(&sliced_conv2d_fused));
  m.impl("sliced_conv2d_grad_x", TORCH_BOX(&sliced_conv2d_grad_x));
  m.impl("sliced_conv2d_grad_weight", TORCH_BOX(&sliced_conv2d_grad_weight));
}
