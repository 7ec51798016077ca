// What every binding needs of a torch::stable::Tensor: checked element type, checked layout.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "ddsm/sizes.h"
#include "ddsm/types.h"

namespace ddsm::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The kernels' element type of a tensor; the Python layer has refused others by name already.
inline DType dtype_of(const Tensor& tensor, const char* op) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, op, ": dtype is not one of float32, bfloat16, float16, float64");
  }
  return DType::kFloat32;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

// Kernels run where x is: another tensor elsewhere would be read through a foreign address.
inline void check_same_device(const char* op, const Tensor& x, const Tensor& other) {
  STD_TORCH_CHECK(same_device(x, other), op, ": the tensors are on different devices; need one");
}

// Sizes or strides as [2, 3].
inline std::string list_text(const std::vector<int64_t>& numbers) {
  std::string text = "[";
  for (const int64_t number : numbers) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(number);
  }
  return text + "]";
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  std::vector<int64_t> sizes(tensor.dim());
  for (int64_t d = 0; d < tensor.dim(); ++d) sizes[d] = tensor.size(d);
  return sizes;
}

// Refuses what would be made with these sizes if it has more elements than kernels count to.
inline void check_sizes(const char* op, const char* name, std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(checked_product(sizes) >= 0, op, ": ", name, " has shape ", list_text(sizes),
                  ", need at most ", kMostElements, " elements");
}

// The same for a tensor, whose elements need no memory if it is expanded.
inline void check_elements(const char* op, const char* name, const Tensor& tensor) {
  int64_t product = 1;
  for (int64_t d = 0; d < tensor.dim() && product > 0; ++d) {
    product = checked_product({product, tensor.size(d) > 0 ? tensor.size(d) : 1});
  }
  STD_TORCH_CHECK(product > 0, op, ": ", name, " has shape ", list_text(sizes_of(tensor)),
                  ", need at most ", kMostElements, " elements");
}

// Elements between neighbours along dimension d, if there are any: the stride of a dimension of
// size 1 means nothing and may be any number.
inline int64_t stride_of(const Tensor& tensor, int64_t d) {
  const int64_t stride = tensor.stride(d);
  return tensor.size(d) > 1 || stride <= kMostElements ? stride : 0;
}

// Refuses a tensor that is to be written if elements may share memory, as an expanded one's do.
inline void check_written(const char* op, const char* name, const Tensor& tensor) {
  if (tensor.is_contiguous()) return;
  // From the smallest stride on, each must step over all that lies within.
  int64_t reach = 1, last = -1;
  for (int64_t done = 0; done < tensor.dim(); ++done) {
    int64_t next = -1;
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      const auto after = [&](int64_t a, int64_t b) {  // by stride, then by position
        return b < 0 || tensor.stride(a) > tensor.stride(b) ||
               (tensor.stride(a) == tensor.stride(b) && a > b);
      };
      if (after(d, last) && (next < 0 || after(next, d))) next = d;
    }
    last = next;
    if (tensor.size(next) <= 1) continue;
    STD_TORCH_CHECK(tensor.stride(next) >= reach, op, ": ", name, " has a stride of ",
                    tensor.stride(next), ", by which its elements share memory; need at least ",
                    reach);
    reach += (tensor.size(next) - 1) * tensor.stride(next);
  }
}

// True if x [N, C, H, W] has its channels adjacent in memory and its pixels evenly spaced, as a
// channels_last tensor or a channel slice of one has: element (n, c, h, w) lies at
// ((n * H + h) * W + w) * pixel_stride + c.
inline bool has_nhwc_pixels(const Tensor& x) {
  const int64_t height = x.size(2), width = x.size(3);
  if (x.numel() == 0) return true;
  if (x.size(1) > 1 && x.stride(1) != 1) return false;
  // A dimension of size 1 has no meaningful stride; find the pixel pitch from one that has.
  int64_t pixel_stride = 0;
  if (width > 1) pixel_stride = x.stride(3);
  else if (height > 1) pixel_stride = x.stride(2);
  else if (x.size(0) > 1) pixel_stride = x.stride(0);
  else return true;
  if (pixel_stride < x.size(1)) return false;
  if (height > 1 && x.stride(2) != width * pixel_stride) return false;
  return x.size(0) <= 1 || x.stride(0) == height * width * pixel_stride;
}

// Elements between neighbouring pixels of a tensor for which has_nhwc_pixels holds.
inline int64_t pixel_stride_of(const Tensor& x) {
  if (x.size(3) > 1) return x.stride(3);
  if (x.size(2) > 1) return x.stride(2);
  if (x.size(0) > 1) return x.stride(0);
  return x.size(1);
}

// x itself where kernels can walk it as NHWC, else one channels_last copy of it.
inline Tensor nhwc(const Tensor& x) {
  if (has_nhwc_pixels(x)) return x;
  return torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast);
}

// x with adjacent channels: x itself where it is that already.
inline Tensor adjacent_channels(const Tensor& x) {
  if (x.size(1) == 1 || x.stride(1) == 1) return x;
  return torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast);
}

// An uninitialised tensor on the device of `like`. Straight to the C shim: torch::stable::empty
// goes through the dispatcher by name, which costs as much as a small kernel.
inline Tensor empty_strided(const Tensor& like, ScalarType dtype, const int64_t* sizes,
                            const int64_t* strides, int64_t dimensions) {
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto dtype_id = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle result = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dimensions, sizes, strides, dtype_id,
                                                         device_type, like.get_device_index(),
                                                         &result));
  return Tensor(result);
}

// An uninitialised channels_last tensor [n, c, h, w] with the dtype and device of `like`.
inline Tensor empty_nhwc(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  const int64_t sizes[4] = {n, c, h, w}, strides[4] = {h * w * c, 1, w * c, c};
  return empty_strided(like, like.scalar_type(), sizes, strides, 4);
}

// An uninitialised contiguous tensor on the device of `like`.
inline Tensor empty_contiguous(const Tensor& like, ScalarType dtype,
                               const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  return empty_strided(like, dtype, sizes.data(), strides.data(),
                       static_cast<int64_t>(sizes.size()));
}

inline Tensor empty_contiguous_like(const Tensor& x) {
  return empty_contiguous(x, x.scalar_type(), sizes_of(x));
}

// `bytes` of uninitialised memory on the device of `like`.
inline Tensor empty_scratch(int64_t bytes, const Tensor& like) {
  return empty_contiguous(like, ScalarType::Byte, {bytes});
}

// The type of statistics of `like`: float64 for float64, else float32.
inline ScalarType statistics_type(const Tensor& like) {
  return like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace ddsm::binding
