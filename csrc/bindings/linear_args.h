// What the CPU and the CUDA bindings of sliced_linear share: checks, and tensors as matrices.
#pragma once

#include <vector>

#include "checks.h"

namespace ddsm::binding {

// x [..., c] beside a weight whose `dimension` meets c.
inline void check_matrix(const char* op, const Tensor& x, const Tensor& weight,
                         int64_t dimension) {
  STD_TORCH_CHECK(x.dim() >= 1 && weight.dim() == 2, op, ": need x [..., c] and a matrix weight");
  check_same_device(op, x, weight);
  const int64_t width = x.size(x.dim() - 1), most = weight.size(dimension);
  STD_TORCH_CHECK(width >= 1 && width <= most, op, ": ", width,
                  " features do not match weight, need 1 to ", most);
  check_elements(op, "x", x);
  check_elements(op, "weight", weight);
}

inline void check_c_in(const char* op, int64_t c_in, const Tensor& weight) {
  STD_TORCH_CHECK(c_in >= 1 && c_in <= weight.size(1), op, ": c_in is ", c_in, ", weight has ",
                  weight.size(1), " input features");
}

inline void check_same_rows(const char* op, const Tensor& grad_y, const Tensor& x) {
  STD_TORCH_CHECK(grad_y.scalar_type() == x.scalar_type() &&
                      grad_y.numel() / grad_y.size(grad_y.dim() - 1) ==
                          x.numel() / x.size(x.dim() - 1),
                  op, ": grad_y and x differ in rows or dtype");
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
  const int64_t dims = x.dim();
  std::vector<int64_t> sizes(dims), strides(dims);
  int64_t stride = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    sizes[d] = d == dims - 1 ? columns : x.size(d);
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  return empty_strided(x, x.scalar_type(), sizes.data(), strides.data(), dims);
}

}  // namespace ddsm::binding
