// What the CPU and the CUDA bindings of sliced_conv2d share: checks, shapes, views.
#pragma once

#include "ddsm/conv2d.h"
#include "checks.h"

namespace ddsm::binding {

inline void check_weight(const char* op, const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == weight.size(3) && weight.size(2) >= 1, op,
                  ": weight is not [c_out_max, c_in_max, k, k]");
  STD_TORCH_CHECK(weight.size(2) <= kMostKernel, op, ": weight has a ", weight.size(2), "x",
                  weight.size(2), " kernel; need at most ", kMostKernel, "x", kMostKernel);
  check_elements(op, "weight", weight);
}

inline void check_image(const char* op, const Tensor& x, const Tensor& weight, int64_t offset) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": an image has ", x.dim(), " dimensions, need 4");
  STD_TORCH_CHECK(x.size(1) >= 1 && offset >= 0 && offset <= weight.size(1) - x.size(1), op, ": ",
                  x.size(1), " channels at weight offset ", offset, ", weight has ",
                  weight.size(1), " input channels");
  check_elements(op, "an image", x);
}

inline void check_sources(const char* op, const Tensor& x, const std::optional<Tensor>& x2,
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

inline Conv2dShape shape_of(const char* op, int64_t images, int64_t height, int64_t width,
                            int64_t kernel, int64_t stride, int64_t padding, bool upsample,
                            bool pad_end) {
  STD_TORCH_CHECK(stride == 1 || stride == 2, op, ": stride is ", stride, ", need 1 or 2");
  STD_TORCH_CHECK(padding >= 0 && padding < kernel, op, ": padding is ", padding,
                  ", need 0 <= padding < ", kernel);
  const int64_t scale = upsample ? 2 : 1, padding_end = padding + pad_end;
  const int64_t reach = padding + padding_end - kernel;
  // The upper bound keeps a raw call's numbers from overflowing here.
  STD_TORCH_CHECK(height >= 1 && width >= 1 && height <= kMostElements &&
                      width <= kMostElements && height * scale + reach >= 0 &&
                      width * scale + reach >= 0,
                  op, ": ", height, "x", width, " pixels are too few or too many for the kernel");
  return {images,
          height,
          width,
          (height * scale + reach) / stride + 1,
          (width * scale + reach) / stride + 1,
          stride,
          padding,
          scale,
          padding_end};
}

// The output's sizes, checked.
inline void check_output(const char* op, const Conv2dShape& shape, int64_t channels) {
  check_sizes(op, "the output", {shape.images, channels, shape.out_height, shape.out_width});
}

// The gradient of x beside its weight; fills the shape.
inline Conv2dShape grad_x_shape(const char* op, const Tensor& grad_y, const Tensor& weight,
                                int64_t c_in, int64_t c_in_offset, int64_t height, int64_t width,
                                int64_t stride, int64_t padding, bool upsample, bool pad_end) {
  STD_TORCH_CHECK(grad_y.dim() == 4 && grad_y.size(1) >= 1 && grad_y.size(1) <= weight.size(0), op,
                  ": grad_y does not match weight");
  check_elements(op, "grad_y", grad_y);
  STD_TORCH_CHECK(c_in >= 1 && c_in_offset >= 0 && c_in_offset <= weight.size(1) - c_in, op,
                  ": c_in is ", c_in, " at offset ", c_in_offset, ", weight has ", weight.size(1),
                  " input channels");
  const Conv2dShape shape = shape_of(op, grad_y.size(0), height, width, weight.size(2), stride,
                                     padding, upsample, pad_end);
  STD_TORCH_CHECK(grad_y.size(2) == shape.out_height && grad_y.size(3) == shape.out_width, op,
                  ": grad_y is not of the output's height and width");
  check_sizes(op, "the gradient of x", {shape.images, c_in, height, width});
  return shape;
}

// The gradient of the weight beside what it is made of; fills the shape.
inline Conv2dShape grad_weight_shape(const char* op, const Tensor& grad_y, const Tensor& x,
                                     const Tensor& grad_weight, int64_t stride, int64_t padding,
                                     bool upsample, bool pad_end) {
  const Conv2dShape shape = shape_of(op, x.size(0), x.size(2), x.size(3), grad_weight.size(2),
                                     stride, padding, upsample, pad_end);
  STD_TORCH_CHECK(grad_y.dim() == 4 && grad_y.scalar_type() == x.scalar_type() &&
                      grad_y.size(0) == x.size(0) && grad_y.size(1) >= 1 &&
                      grad_y.size(1) <= grad_weight.size(0) &&
                      grad_y.size(2) == shape.out_height && grad_y.size(3) == shape.out_width,
                  op, ": grad_y does not match x and grad_weight");
  check_elements(op, "grad_y", grad_y);
  check_written(op, "grad_weight", grad_weight);
  return shape;
}

inline Conv2dImage image_of(const Tensor& x, int64_t weight_offset) {
  return {x.const_data_ptr(), stride_of(x, 0), stride_of(x, 2),
          stride_of(x, 3),    x.size(1),       weight_offset};
}

inline Conv2dWeight weight_of(const char* op, const Tensor& weight, void* data) {
  return {data,
          dtype_of(weight, op),
          stride_of(weight, 0),
          stride_of(weight, 1),
          stride_of(weight, 2),
          stride_of(weight, 3),
          static_cast<int32_t>(weight.size(2))};
}

// A weight that a kernel only reads.
inline Conv2dWeight weight_of(const char* op, const Tensor& weight) {
  return weight_of(op, weight, const_cast<void*>(weight.const_data_ptr()));
}

}  // namespace ddsm::binding
