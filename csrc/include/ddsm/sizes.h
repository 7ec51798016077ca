// Sizes made of a caller's integers, which need not have memory behind them: an expanded tensor has
// any shape. Whatever is multiplied before a tensor was checked is multiplied here. No torch.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace ddsm {

// Elements of the largest tensor that a call takes or makes, 4 TiB of float32. The kernels multiply
// such counts by constants, and by each other only as doubles.
constexpr int64_t kMostElements = int64_t{1} << 40;
// Side of the largest convolution kernel: each of its taps is listed.
constexpr int64_t kMostKernel = 1024;

// Blocks of a linear layer's weight, which are listed, too.
constexpr int64_t kMostBlocks = 1024;

// The product of sizes, of which one may be 0, or -1: one is negative, or those that are not 0 have
// a product above kMostElements.
inline int64_t checked_product(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  bool empty = false;
  for (const int64_t size : sizes) {
    if (size < 0) return -1;
    if (size == 0) {
      empty = true;
    } else if (size > kMostElements / product) {
      return -1;
    } else {
      product *= size;
    }
  }
  return empty ? 0 : product;
}

}  // namespace ddsm
