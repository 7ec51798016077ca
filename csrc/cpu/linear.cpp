// sliced_linear and its gradients: rows are the pixels of the GEMM core (gemm.h); few rows or
// lanes take dot products along the weight rows, which needs no packing.
#include "ddsm/linear.h"

#include <algorithm>
#include <vector>

#include "gemm.h"
#include "isa.h"

namespace ddsm {

// Outputs [begin, begin + count) of the layer, counted on through the layers behind it. All are
// plain, of one block, and have the layer's rows and dtypes.
DDSM_DECLARE_VARIANTS(void, linear_dot, const LinearForwardArgs* layer, int64_t begin,
                      int64_t count)

namespace {

// Packing a panel costs about 0.3 cycles an element; up to 16 rows it does not pay.
constexpr int64_t kDotRows = 16;
// So few lanes would leave most of a panel empty.
constexpr int64_t kDotLanes = 4;
// PyTorch's products of this size keep several short sums; one long sum has 2.6x their error.
constexpr int64_t kLongestSum = 32;
constexpr int64_t kMacsPerThread = 200000;
// With fewer rows than these the time goes into reading the weight from memory.
constexpr int64_t kStreamRows = 8;

constexpr GemmTap kCentre{0, 0, 1, {0}};

DType compute_of(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

GemmPhase row_phase(int64_t rows, int64_t y_row_stride) {
  return {1, rows, 0, 0, y_row_stride, 1, 1, &kCentre, nullptr};
}

// Rows as pixels of images one pixel high.
GemmArgs row_problem(const void* source, int64_t images, int64_t rows, int64_t depth,
                     int64_t row_stride) {
  GemmArgs problem{};
  problem.n_sources = 1;
  problem.sources[0] = {source, rows / images * row_stride, 0, row_stride, 1, rows / images, depth,
                        0};
  problem.images = images;
  return problem;
}

// Nothing but sums of products, bias and residual.
bool is_plain(const LinearForwardArgs& args) {
  return args.activation == Activation::kNone && !args.gate;
}

bool is_dot(const LinearForwardArgs& args) {
  const bool narrow = args.rows <= kDotRows || args.c_out <= kDotLanes;
  return narrow && args.weight.in_stride == 1;
}

// All outputs of layers that `is_dot` holds for and that share rows, c_in and dtypes.
void dot_layers(const LinearForwardArgs* layers, int64_t count) {
  int64_t outputs = 0;
  for (int64_t i = 0; i < count; ++i) outputs += layers[i].c_out;
  const int64_t macs =
      std::max<int64_t>(1, std::max(layers->rows, kStreamRows) * layers->c_in);
  const int64_t grain = std::max<int64_t>(1, kMacsPerThread / macs);
  parallel_for(0, outputs, grain, [&](int64_t begin, int64_t end) {
    const LinearForwardArgs* layer = layers;
    int64_t first = begin;
    for (; first >= layer->c_out; ++layer) first -= layer->c_out;
    DDSM_CALL_VARIANT(linear_dot, layer, first, end - begin);
  });
}

// A plain layer's blocks as layers of one block each.
void dot_blocks(const LinearForwardArgs& args) {
  if (args.weight.blocks == 1) return dot_layers(&args, 1);
  std::vector<LinearForwardArgs> blocks(args.weight.blocks, args);
  for (int64_t b = 0; b < args.weight.blocks; ++b) {
    LinearForwardArgs& block = blocks[b];
    const DType dtype = args.weight.dtype;
    block.weight.data = advanced(args.weight.data, b * args.weight.block_stride, dtype);
    block.bias = advanced(args.bias, b * args.weight.c_out_max, dtype);
    block.residual = advanced(args.residual, b * args.c_out, args.y_dtype);
    block.y = advanced(args.y, b * args.c_out, args.y_dtype);
  }
  dot_layers(blocks.data(), args.weight.blocks);
}

// What is not plain goes through the products in the compute type, few as they are.
bool dot_forward(const LinearForwardArgs& args) {
  if (is_plain(args)) return dot_blocks(args), true;
  LinearForwardArgs products = args;
  products.residual = nullptr;
  products.y_dtype = compute_of(args.y_dtype);
  products.y_row_stride = args.weight.blocks * args.c_out;
  products.y = gemm_workspace(args.rows * products.y_row_stride * element_bytes(products.y_dtype));
  if (!products.y) return false;
  dot_blocks(products);
  const int64_t of_channel = args.activation == Activation::kGeglu ? 2 : 1;
  activation({products.y, products.y_dtype, args.images, args.rows / args.images,
              products.y_row_stride / of_channel, products.y_row_stride, args.activation, args.gate,
              args.residual, args.y_row_stride, args.y, args.y_dtype});
  return true;
}

bool same_kind(const LinearForwardArgs& a, const LinearForwardArgs& b) {
  return a.rows == b.rows && a.c_in == b.c_in && a.weight.dtype == b.weight.dtype &&
         a.y_dtype == b.y_dtype;
}

}  // namespace

bool linear_forward(const LinearForwardArgs& args) {
  if (args.rows == 0) return true;
  if (is_dot(args)) return dot_forward(args);
  GemmArgs problem = row_problem(args.x, args.images, args.rows, args.c_in, args.x_row_stride);
  problem.compute = compute_of(args.y_dtype);
  problem.weight_dtype = args.weight.dtype;
  problem.y_dtype = args.y_dtype;
  problem.weight = {args.weight.data, args.weight.out_stride, args.weight.in_stride, 0, 0, 1, 1,
                    args.weight.block_stride};
  problem.parts = args.weight.blocks;
  problem.lanes_max = args.weight.c_out_max;
  problem.bias = args.bias;
  problem.activation = args.activation;
  problem.gate = args.gate;
  problem.residual = args.residual;
  problem.longest_sum = kLongestSum;
  problem.y = args.y;
  problem.y_n_stride = args.rows / args.images * args.y_row_stride;
  problem.lanes = args.c_out;
  return gemm_multiply(problem, row_phase(args.rows / args.images, args.y_row_stride));
}

bool linears_forward(const LinearForwardArgs* layers, int64_t count) {
  const auto joins = [&](const LinearForwardArgs& layer) {
    return is_dot(layer) && is_plain(layer) && layer.weight.blocks == 1 &&
           same_kind(layer, *layers);
  };
  if (count > 0 && std::all_of(layers, layers + count, joins)) {
    return dot_layers(layers, count), true;
  }
  return std::all_of(layers, layers + count, linear_forward);
}

// The blocks of grad_z are the rows of an image as wide as there are rows, and each is a tap.
bool linear_grad_x(const LinearGradXArgs& args) {
  const LinearWeight& weight = args.weight;
  const int32_t blocks = static_cast<int32_t>(weight.blocks);
  GemmArgs problem = row_problem(args.grad_z, 1, args.rows, args.c_out, args.grad_z_row_stride);
  problem.sources[0].h_stride = args.c_out;
  problem.sources[0].height = blocks;
  problem.compute = compute_of(args.grad_x_dtype);
  problem.weight_dtype = weight.dtype;
  problem.y_dtype = args.grad_x_dtype;
  problem.weight = {weight.data,         weight.in_stride, weight.out_stride, 0,
                    weight.block_stride, blocks,           blocks};
  problem.y = args.grad_x;
  problem.lanes = args.c_in;
  std::vector<GemmTap> taps;
  for (int32_t b = 0; b < blocks; ++b) taps.push_back({b, 0, 1, {b}});
  GemmPhase phase = row_phase(args.rows, args.c_in);
  phase.n_taps = blocks;
  phase.taps = taps.data();
  return gemm_multiply(problem, phase);
}

bool linear_grad_weight(const LinearGradWeightArgs& args) {
  const LinearWeight& weight = args.grad_weight;
  GemmArgs problem = row_problem(args.x, 1, args.rows, args.c_in, args.x_row_stride);
  problem.compute = args.compute;
  problem.weight_dtype = weight.dtype;
  problem.y_dtype = args.compute;
  problem.lanes = args.c_out;
  const GemmPhase phase = row_phase(args.rows, args.grad_z_row_stride);
  for (int64_t b = 0; b < weight.blocks; ++b) {
    problem.weight = {advanced(weight.data, b * weight.block_stride, weight.dtype),
                      weight.out_stride, weight.in_stride, 0, 0, 1, 1};
    problem.y = const_cast<void*>(advanced(args.grad_z, b * args.c_out, args.compute));
    void* bias = advanced(args.grad_bias, b * weight.c_out_max, weight.dtype);
    if (!gemm_accumulate(problem, phase)) return false;
    if (bias) gemm_accumulate_bias(problem, phase, bias);
  }
  return true;
}

}  // namespace ddsm
