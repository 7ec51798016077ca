#include "conv2d_plan.h"

#include <algorithm>

#include "arithmetic.h"

namespace ddsm {
namespace {

// One dimension of a tap: reads input position `grid * step + offset` with the kernel elements
// `raw` (at most two: nearest upsampling by 2 maps two neighbours to one pixel).
struct AxisTap {
  int64_t offset;
  int32_t n_raw;
  int32_t raw[2];
};

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

void add_axis_tap(std::vector<AxisTap>& taps, int64_t offset, int32_t raw) {
  for (AxisTap& tap : taps) {
    if (tap.offset == offset) {
      tap.raw[tap.n_raw++] = raw;
      return;
    }
  }
  taps.push_back({offset, 1, {raw, 0}});
}

std::vector<GemmTap> product(const std::vector<AxisTap>& rows, const std::vector<AxisTap>& cols,
                             int32_t kernel) {
  std::vector<GemmTap> taps;
  taps.reserve(rows.size() * cols.size());
  for (const AxisTap& row : rows) {
    for (const AxisTap& col : cols) {
      GemmTap tap{row.offset, col.offset, 0, {}};
      for (int32_t i = 0; i < row.n_raw; ++i) {
        for (int32_t j = 0; j < col.n_raw; ++j) {
          tap.raw[tap.n_raw++] = row.raw[i] * kernel + col.raw[j];
        }
      }
      taps.push_back(tap);
    }
  }
  return taps;
}

// Output positions first, first + step, ... below size.
int64_t positions(int64_t size, int64_t first, int64_t step) {
  return std::max<int64_t>(0, ceil_div(size - first, step));
}

// All pairs of residue classes; axis[p] holds the taps of outputs p, p + n, ... along one axis.
std::vector<Conv2dPhase> cross(const std::vector<std::vector<AxisTap>>& axis, int64_t height,
                               int64_t width, int64_t input_step, int32_t kernel) {
  const int64_t classes = static_cast<int64_t>(axis.size());
  std::vector<Conv2dPhase> phases;
  phases.reserve(classes * classes);
  for (int64_t p = 0; p < classes; ++p) {
    for (int64_t q = 0; q < classes; ++q) {
      phases.push_back({p, q, classes, positions(height, p, classes), positions(width, q, classes),
                        input_step, product(axis[p], axis[q], kernel)});
    }
  }
  return phases;
}

}  // namespace

std::vector<Conv2dPhase> plan_forward(const Conv2dShape& shape, int32_t kernel) {
  // Output i reads enlarged position i * stride - padding + r, that is input pixel
  // floor(that / scale). With i = classes * grid + p, stride * classes is a multiple of scale.
  const int64_t classes = shape.stride % shape.scale == 0 ? 1 : shape.scale;
  std::vector<std::vector<AxisTap>> axis(classes);
  for (int64_t p = 0; p < classes; ++p) {
    axis[p].reserve(kernel);
    for (int32_t r = 0; r < kernel; ++r) {
      add_axis_tap(axis[p], floor_div(p * shape.stride - shape.padding + r, shape.scale), r);
    }
  }
  return cross(axis, shape.out_height, shape.out_width, shape.stride * classes / shape.scale,
               kernel);
}

std::vector<Conv2dPhase> plan_panels(int32_t kernel, int64_t scale) {
  const int64_t size = kernel * scale, padding = kernel / 2;
  return plan_forward({1, kernel, kernel, size, size, 1, padding, scale, padding}, kernel);
}

std::vector<Conv2dPhase> plan_grad_x(const Conv2dShape& shape, int32_t kernel) {
  // Input u (a of `scale` enlarged copies: scale * u + a) meets output i where
  // i * stride = scale * u + a + padding - r. With u = classes * grid + p this is
  // i = grid * (scale * classes / stride) + (scale * p + a + padding - r) / stride, if it divides.
  const int64_t classes = shape.scale % shape.stride == 0 ? 1 : shape.stride;
  std::vector<std::vector<AxisTap>> axis(classes);
  for (int64_t p = 0; p < classes; ++p) {
    for (int64_t a = 0; a < shape.scale; ++a) {
      for (int32_t r = 0; r < kernel; ++r) {
        const int64_t distance = shape.scale * p + a + shape.padding - r;
        if (distance % shape.stride == 0) {
          add_axis_tap(axis[p], floor_div(distance, shape.stride), r);
        }
      }
    }
  }
  return cross(axis, shape.height, shape.width, shape.scale * classes / shape.stride, kernel);
}

}  // namespace ddsm
