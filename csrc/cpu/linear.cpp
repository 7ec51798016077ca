// sliced_linear and its gradients: rows are the pixels of the GEMM core (gemm.h); few rows or
// lanes take dot products along the weight rows, which needs no packing.
#include "ddsm/linear.h"

#include <algorithm>

#include "gemm.h"
#include "isa.h"

namespace ddsm {

// Outputs [begin, begin + count) of the layer, counted on through the layers behind it. All have
// the layer's rows and dtypes.
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

GemmArgs row_problem(const void* source, int64_t rows, int64_t depth, int64_t row_stride) {
  GemmArgs problem{};
  problem.n_sources = 1;
  problem.sources[0] = {source, 0, 0, row_stride, 1, rows, depth, 0};
  problem.images = 1;
  return problem;
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

bool same_kind(const LinearForwardArgs& a, const LinearForwardArgs& b) {
  return a.rows == b.rows && a.c_in == b.c_in && a.weight.dtype == b.weight.dtype &&
         a.y_dtype == b.y_dtype;
}

}  // namespace

bool linear_forward(const LinearForwardArgs& args) {
  if (is_dot(args)) return dot_layers(&args, 1), true;
  GemmArgs problem = row_problem(args.x, args.rows, args.c_in, args.x_row_stride);
  problem.compute = compute_of(args.y_dtype);
  problem.weight_dtype = args.weight.dtype;
  problem.y_dtype = args.y_dtype;
  problem.weight = {args.weight.data, args.weight.out_stride, args.weight.in_stride, 0, 0, 1};
  problem.bias = args.bias;
  problem.residual = args.shift;
  problem.longest_sum = kLongestSum;
  problem.y = args.y;
  problem.lanes = args.c_out;
  return gemm_multiply(problem, row_phase(args.rows, args.c_out));
}

bool linears_forward(const LinearForwardArgs* layers, int64_t count) {
  const auto joins = [&](const LinearForwardArgs& layer) {
    return is_dot(layer) && same_kind(layer, *layers);
  };
  if (count > 0 && std::all_of(layers, layers + count, joins)) {
    return dot_layers(layers, count), true;
  }
  return std::all_of(layers, layers + count, linear_forward);
}

bool linear_grad_x(const LinearGradXArgs& args) {
  GemmArgs problem = row_problem(args.grad_y, args.rows, args.c_out, args.grad_y_row_stride);
  problem.compute = compute_of(args.grad_x_dtype);
  problem.weight_dtype = args.weight.dtype;
  problem.y_dtype = args.grad_x_dtype;
  problem.weight = {args.weight.data, args.weight.in_stride, args.weight.out_stride, 0, 0, 1};
  problem.y = args.grad_x;
  problem.lanes = args.c_in;
  return gemm_multiply(problem, row_phase(args.rows, args.c_in));
}

bool linear_grad_weight(const LinearGradWeightArgs& args) {
  GemmArgs problem = row_problem(args.x, args.rows, args.c_in, args.x_row_stride);
  problem.compute = args.compute;
  problem.weight_dtype = args.grad_weight.dtype;
  problem.y_dtype = args.compute;
  problem.weight = {args.grad_weight.data, args.grad_weight.out_stride, args.grad_weight.in_stride,
                    0,                     0,                           1};
  problem.y = const_cast<void*>(args.grad_y);
  problem.lanes = args.c_out;
  const GemmPhase phase = row_phase(args.rows, args.grad_y_row_stride);
  if (!gemm_accumulate(problem, phase)) return false;
  if (args.grad_bias) gemm_accumulate_bias(problem, phase, args.grad_bias);
  return true;
}

}  // namespace ddsm
