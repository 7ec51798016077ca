// What the CPU and the CUDA binding of resample share: checks, output, Args.
#pragma once

#include "ddsm/resample.h"
#include "tensor.h"

namespace ddsm::binding {

// x [N, C, H, W] beside an output that is twice or half as high and wide, and a residual like it.
struct Resampling {
  Tensor x, residual, y;
  ResampleArgs args{};

  Resampling(const char* op, const Tensor& x_any, bool up, double gain, int64_t taps, bool ring,
             const std::optional<Tensor>& residual_any)
      : x(checked(op, x_any, up, taps, ring)),
        residual(residual_any.has_value() ? *residual_any : x) {
    args.x = x.const_data_ptr();
    args.dtype = dtype_of(x, op);
    args.images = x.size(0);
    args.channels = x.size(1);
    args.height = x.size(2);
    args.width = x.size(3);
    args.n_stride = stride_of(x, 0);
    args.h_stride = stride_of(x, 2);
    args.w_stride = stride_of(x, 3);
    args.up = up;
    args.gain = gain;
    args.taps = static_cast<int32_t>(taps);
    args.ring = ring;
    y = empty_nhwc(x, x.size(0), x.size(1), args.out_side(x.size(2)), args.out_side(x.size(3)));
    args.y = y.mutable_data_ptr();
    if (residual_any.has_value()) add(op);
  }

 private:
  static Tensor checked(const char* op, const Tensor& x, bool up, int64_t taps, bool ring) {
    STD_TORCH_CHECK(x.dim() == 4, op, ": x has ", x.dim(), " dimensions; need 4");
    STD_TORCH_CHECK(taps == 2 || taps == 4, op, ": taps is ", taps, "; need 2 or 4");
    STD_TORCH_CHECK(!ring || taps == 4, op, ": ring is True beside 2 taps; need 4");
    const int64_t height = x.size(2), width = x.size(3);
    STD_TORCH_CHECK(up || (height % 2 == 0 && width % 2 == 0), op, ": x has ", height, "x", width,
                    " pixels; need an even height and width to halve them");
    STD_TORCH_CHECK(up || !ring || (height > 0 && width > 0), op, ": x has ", height, "x", width,
                    " pixels; need a ring around them");
    check_elements(op, "x", x);
    return adjacent_channels(x);
  }

  void add(const char* op) {
    check_same_device(op, x, residual);
    STD_TORCH_CHECK(residual.dim() == 4 && sizes_of(residual) == sizes_of(y) &&
                        residual.scalar_type() == x.scalar_type(),
                    op, ": residual is not of the result's shape ", list_text(sizes_of(y)),
                    " and dtype");
    check_elements(op, "residual", residual);
    residual = adjacent_channels(residual);
    args.residual = residual.const_data_ptr();
    args.residual_n_stride = stride_of(residual, 0);
    args.residual_h_stride = stride_of(residual, 2);
    args.residual_w_stride = stride_of(residual, 3);
  }
};

}  // namespace ddsm::binding
