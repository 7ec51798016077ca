// What the CPU and the CUDA bindings of sliced_linear share: checks, and tensors as matrices. The
// matrices also are those of sliced_activation.
#pragma once

#include <vector>

#include "activation_args.h"
#include "checks.h"

namespace ddsm::binding {

// Of a weight [c_out_max, c_in_max], or [blocks, c_out_max, c_in_max].
struct WeightSizes {
  int64_t blocks, c_out_max, c_in_max;
};

inline WeightSizes weight_sizes(const char* op, const Tensor& weight) {
  const int64_t dims = weight.dim();
  STD_TORCH_CHECK(dims == 2 || dims == 3, op, ": weight has ", dims, " dimensions; need 2 or 3");
  const int64_t blocks = dims == 3 ? weight.size(0) : 1;
  STD_TORCH_CHECK(blocks >= 1 && blocks <= kMostBlocks, op, ": weight has ", blocks,
                  " blocks; need 1 to ", kMostBlocks);
  check_elements(op, "weight", weight);
  return {blocks, weight.size(dims - 2), weight.size(dims - 1)};
}

// x [..., blocks * c] beside a weight that has at most `most` for c; returns c.
inline int64_t check_columns(const char* op, const Tensor& x, const Tensor& weight, int64_t blocks,
                             int64_t most) {
  STD_TORCH_CHECK(x.dim() >= 1, op, ": a matrix has no dimension; need [..., c]");
  check_same_device(op, x, weight);
  const int64_t width = x.size(x.dim() - 1), c = width / blocks;
  STD_TORCH_CHECK(c >= 1 && c <= most && c * blocks == width, op, ": ", width,
                  " features do not match weight; need 1 to ", most, " for each of ", blocks,
                  " blocks");
  check_elements(op, "x", x);
  return c;
}

// A count of outputs or inputs of a weight that has `most`.
inline void check_count(const char* op, const char* name, int64_t count, int64_t most) {
  STD_TORCH_CHECK(count >= 1 && count <= most, op, ": ", name, " is ", count,
                  ", weight has ", most, "; need 1 <= ", name, " <= ", most);
}

// A bias, or its gradient, of all rows of a weight.
inline void check_block_bias(const char* op, const std::optional<Tensor>& bias,
                             const Tensor& weight) {
  if (!bias.has_value()) return;
  check_same_device(op, weight, *bias);
  std::vector<int64_t> sizes = sizes_of(weight);
  sizes.pop_back();
  STD_TORCH_CHECK(sizes_of(*bias) == sizes && bias->scalar_type() == weight.scalar_type(), op,
                  ": bias is not ", list_text(sizes), " of weight's dtype");
}

using CheckDtypes = void (*)(const char* op, const Tensor& x, const Tensor& weight);

inline WeightSizes check_linear(const char* op, const Tensor& x, const Tensor& weight,
                                const std::optional<Tensor>& bias, int64_t c_out,
                                Activation activation, CheckDtypes check_dtypes) {
  const WeightSizes sizes = weight_sizes(op, weight);
  check_columns(op, x, weight, 1, sizes.c_in_max);
  check_dtypes(op, x, weight);
  check_block_bias(op, bias, weight);
  check_count(op, "c_out", c_out, sizes.c_out_max);
  STD_TORCH_CHECK(activation != Activation::kGeglu || sizes.blocks == 2, op, ": weight has ",
                  sizes.blocks, " blocks; geglu needs 2");
  return sizes;
}

inline WeightSizes check_linear_grad_weight(const char* op, const Tensor& grad_y, const Tensor& x,
                                            const Tensor& grad_weight,
                                            const std::optional<Tensor>& grad_bias,
                                            CheckDtypes check_dtypes) {
  const WeightSizes sizes = weight_sizes(op, grad_weight);
  check_columns(op, grad_y, grad_weight, sizes.blocks, sizes.c_out_max);
  check_columns(op, x, grad_weight, 1, sizes.c_in_max);
  check_dtypes(op, x, grad_weight);
  STD_TORCH_CHECK(grad_y.scalar_type() == x.scalar_type() &&
                      grad_y.numel() / grad_y.size(grad_y.dim() - 1) ==
                          x.numel() / x.size(x.dim() - 1),
                  op, ": grad_y and x differ in rows or dtype");
  check_block_bias(op, grad_bias, grad_weight);
  STD_TORCH_CHECK(!grad_bias.has_value() || grad_bias->is_contiguous(), op,
                  ": grad_bias is not contiguous");
  check_written(op, "grad_weight", grad_weight);
  return sizes;
}

// Elements between neighbouring rows if x [..., c] is a matrix [rows, c] with adjacent columns,
// else -1.
inline int64_t row_stride(const Tensor& x) {
  const int64_t dims = x.dim(), columns = x.size(dims - 1);
  if (columns > 1 && x.stride(dims - 1) != 1) return -1;
  int64_t stride = -1, expected = -1;
  for (int64_t d = dims - 2; d >= 0; --d) {
    if (x.size(d) == 1) continue;
    if (stride < 0) stride = expected = x.stride(d);
    if (x.stride(d) != expected) return -1;
    expected *= x.size(d);
  }
  return stride < 0 ? columns : stride;
}

struct Rows {
  Tensor tensor;  // keeps the memory
  int64_t rows, columns, stride;
};

// x [..., c] as a matrix; x itself where it is that already.
inline Rows rows_of(const Tensor& x) {
  const int64_t columns = x.size(x.dim() - 1), rows = x.numel() / columns;
  const int64_t stride = row_stride(x);
  if (stride >= 0) return {x, rows, columns, stride};
  return {torch::stable::contiguous(x), rows, columns, columns};
}

// Uninitialised contiguous [..., columns] beside x [..., c].
inline Tensor empty_rows(const char* op, const Tensor& x, int64_t columns) {
  check_sizes(op, "the output", {x.numel() / x.size(x.dim() - 1), columns});
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = columns;
  return empty_contiguous(x, x.scalar_type(), sizes);
}

}  // namespace ddsm::binding
