// What the CPU and the CUDA binding of resample share: checks, output, Args.
#pragma once

#include "ddsm/resample.h"
#include "tensor.h"

namespace ddsm::binding {

// x [N, C, H, W] beside an output that is twice or half as high and wide.
struct Resampling {
  Tensor x, y;
  ResampleArgs args{};

  Resampling(const char* op, const Tensor& x_any, bool up, double gain)
      : x(checked(op, x_any, up)), y(empty(x, up)) {
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
    args.y = y.mutable_data_ptr();
  }

 private:
  static Tensor checked(const char* op, const Tensor& x, bool up) {
    STD_TORCH_CHECK(x.dim() == 4, op, ": x has ", x.dim(), " dimensions; need 4");
    const int64_t height = x.size(2), width = x.size(3);
    STD_TORCH_CHECK(up || (height % 2 == 0 && width % 2 == 0), op, ": x has ", height, "x", width,
                    " pixels; need an even height and width to halve them");
    check_elements(op, "x", x);
    return adjacent_channels(x);
  }

  static Tensor empty(const Tensor& x, bool up) {
    const int64_t height = up ? 2 * x.size(2) : x.size(2) / 2;
    return empty_nhwc(x, x.size(0), x.size(1), height, up ? 2 * x.size(3) : x.size(3) / 2);
  }
};

}  // namespace ddsm::binding
