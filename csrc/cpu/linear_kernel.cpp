// sliced_linear for few rows: dot products along the weight rows, which stay where they are.
#include "ddsm/linear.h"
#include "gemm_tile.h"

namespace ddsm::DDSM_ISA {
namespace {

// 3 weight rows x 4 rows of x: 12 accumulators, 3 weight vectors and 1 of x fill 16 registers.
constexpr int kWeightRows = 3, kRows = 4;

// y[m0.., o0..] for up to kRows x kWeightRows elements; missing ones repeat the last and are
// not stored.
template <class T, class TW, class TY>
void dot_tile(const LinearForwardArgs& args, int64_t m0, int64_t o0, int64_t o_end) {
  typedef Vec<T> Vector;
  constexpr int kVector = Lanes<T>::kCount;
  const T* x[kRows];
  const TW* w[kWeightRows];
  DDSM_UNROLL
  for (int i = 0; i < kRows; ++i) {
    x[i] = static_cast<const T*>(args.x) + smaller(m0 + i, args.rows - 1) * args.x_row_stride;
  }
  DDSM_UNROLL
  for (int j = 0; j < kWeightRows; ++j) {
    w[j] = static_cast<const TW*>(args.weight.data) +
           smaller(o0 + j, o_end - 1) * args.weight.out_stride;
  }
  Vector sum[kRows][kWeightRows];
  DDSM_UNROLL
  for (int i = 0; i < kRows; ++i) {
    DDSM_UNROLL
    for (int j = 0; j < kWeightRows; ++j) sum[i][j] = Vector{};
  }
  int64_t c = 0;
  for (; c + kVector <= args.c_in; c += kVector) {
    Vector wv[kWeightRows];
    DDSM_UNROLL
    for (int j = 0; j < kWeightRows; ++j) wv[j] = load(w[j] + c);
    DDSM_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const Vector xv = load(x[i] + c);
      DDSM_UNROLL
      for (int j = 0; j < kWeightRows; ++j) sum[i][j] += xv * wv[j];
    }
  }
  const TW* bias = static_cast<const TW*>(args.bias);
  const TY* shift = static_cast<const TY*>(args.shift);
  for (int i = 0; i < kRows && m0 + i < args.rows; ++i) {
    for (int j = 0; j < kWeightRows && o0 + j < o_end; ++j) {
      T parts[kVector];
      store(parts, sum[i][j]);
      T total = T(0);
      for (int64_t q = c; q < args.c_in; ++q) total += x[i][q] * to_compute(w[j][q]);
      // By halves: in a row, 16 lanes would round twice as often as PyTorch does.
      for (int half = kVector / 2; half > 0; half /= 2) {
        for (int v = 0; v < half; ++v) parts[v] += parts[v + half];
      }
      total += parts[0];
      if (bias) total += to_compute(bias[o0 + j]);
      const int64_t at = (m0 + i) * args.c_out + o0 + j;
      if (shift) total += to_compute(shift[at]);
      from_compute(total, static_cast<TY*>(args.y) + at);
    }
  }
}

template <class T, class TW, class TY>
void dot_range(const LinearForwardArgs& args, int64_t begin, int64_t end) {
  for (int64_t o = begin; o < end; o += kWeightRows) {
    for (int64_t m = 0; m < args.rows; m += kRows) dot_tile<T, TW, TY>(args, m, o, end);
  }
}

}  // namespace

void linear_dot(const LinearForwardArgs& args, int64_t begin, int64_t end) {
  const bool narrow_weight = args.weight.dtype == DType::kBFloat16;
  if (args.y_dtype == DType::kFloat64) {
    dot_range<double, double, double>(args, begin, end);
  } else if (args.y_dtype == DType::kFloat32) {
    narrow_weight ? dot_range<float, Bf16, float>(args, begin, end)
                  : dot_range<float, float, float>(args, begin, end);
  } else if (narrow_weight) {
    dot_range<float, Bf16, Bf16>(args, begin, end);
  } else {
    dot_range<float, float, Bf16>(args, begin, end);
  }
}

}  // namespace ddsm::DDSM_ISA
