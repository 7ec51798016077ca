// sliced_linear for few rows: dot products along the weight rows, which stay where they are.
#include "ddsm/linear.h"
#include "gemm_tile.h"

namespace ddsm::DDSM_ISA {
namespace {

// Weight rows x rows of x: 12 accumulators, 3 weight vectors and 1 of x fill 16 registers. A single
// row of x leaves the time to the weight's way from memory: 8 rows of it then come at once.
constexpr int kWeightRows = 3, kRows = 4;
constexpr int kWeightRowsOfOne = 8;

// Places of outputs of layers, one after another.
struct Outputs {
  const LinearForwardArgs* layer;
  int64_t begin, end;  // of its outputs
};

template <class TW>
DDSM_INLINE const TW* weight_row(const LinearForwardArgs& args, int64_t o) {
  return static_cast<const TW*>(args.weight.data) + o * args.weight.out_stride;
}

// y[m0.., begin..] for up to kM x kO elements; missing ones repeat the last and are not stored.
// kFetch: brings as many weight rows of `next` into the L2 meanwhile. A width's part of a row is
// short, and the hardware fetches nothing ahead across the gaps between them.
template <class T, class TW, class TY, int kM, int kO, bool kFetch>
__attribute__((noinline)) void dot_tile(const Outputs& outputs, int64_t m0, const Outputs& next) {
  typedef Vec<T> Vector;
  constexpr int kVector = Lanes<T>::kCount;
  const LinearForwardArgs& args = *outputs.layer;
  const int64_t o0 = outputs.begin;
  const T* x[kM];
  const TW *w[kO], *ahead[kO];
  DDSM_UNROLL
  for (int i = 0; i < kM; ++i) {
    x[i] = static_cast<const T*>(args.x) + smaller(m0 + i, args.rows - 1) * args.x_row_stride;
  }
  DDSM_UNROLL
  for (int j = 0; j < kO; ++j) {
    w[j] = weight_row<TW>(args, smaller(o0 + j, outputs.end - 1));
    ahead[j] = weight_row<TW>(*next.layer, smaller(next.begin + j, next.end - 1));
  }
  Vector sum[kM][kO];
  DDSM_UNROLL
  for (int i = 0; i < kM; ++i) {
    DDSM_UNROLL
    for (int j = 0; j < kO; ++j) sum[i][j] = Vector{};
  }
  int64_t c = 0;
  for (; c + kVector <= args.c_in; c += kVector) {
    Vector wv[kO];
    DDSM_UNROLL
    for (int j = 0; j < kO; ++j) {
      wv[j] = load(w[j] + c);
      if constexpr (kFetch) __builtin_prefetch(ahead[j] + c, 0, 2);
    }
    DDSM_UNROLL
    for (int i = 0; i < kM; ++i) {
      const Vector xv = load(x[i] + c);
      DDSM_UNROLL
      for (int j = 0; j < kO; ++j) sum[i][j] += xv * wv[j];
    }
  }
  const TW* bias = static_cast<const TW*>(args.bias);
  const TY* residual = static_cast<const TY*>(args.residual);
  for (int i = 0; i < kM && m0 + i < args.rows; ++i) {
    for (int j = 0; j < kO && o0 + j < outputs.end; ++j) {
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
      const int64_t at = (m0 + i) * args.y_row_stride + o0 + j;
      if (residual) total += to_compute(residual[at]);
      from_compute(total, static_cast<TY*>(args.y) + at);
    }
  }
}

// The next up to `most` outputs behind `at`, in the next layer at the end of one.
Outputs outputs_behind(const Outputs& at, int64_t most, int64_t left) {
  Outputs next{at.layer, at.end, 0};
  for (; next.begin == next.layer->c_out && left > 0; next.begin = 0) ++next.layer;
  next.end = smaller(next.begin + smaller(most, left), next.layer->c_out);
  return next;
}

template <class T, class TW, class TY>
void dot_range(const LinearForwardArgs* layer, int64_t begin, int64_t count) {
  const bool one = layer->rows == 1;
  const int64_t most = one ? kWeightRowsOfOne : kWeightRows;
  Outputs now = outputs_behind({layer, begin, begin}, most, count);
  while (count > 0) {
    count -= now.end - now.begin;
    const Outputs next = count > 0 ? outputs_behind(now, most, count) : now;
    if (one) {
      dot_tile<T, TW, TY, 1, kWeightRowsOfOne, true>(now, 0, next);
    } else {
      for (int64_t m = 0; m < layer->rows; m += kRows) {
        dot_tile<T, TW, TY, kRows, kWeightRows, false>(now, m, next);
      }
    }
    now = next;
  }
}

}  // namespace

void linear_dot(const LinearForwardArgs* layer, int64_t begin, int64_t count) {
  const bool narrow_weight = layer->weight.dtype == DType::kBFloat16;
  if (layer->y_dtype == DType::kFloat64) {
    dot_range<double, double, double>(layer, begin, count);
  } else if (layer->y_dtype == DType::kFloat32) {
    narrow_weight ? dot_range<float, Bf16, float>(layer, begin, count)
                  : dot_range<float, float, float>(layer, begin, count);
  } else if (narrow_weight) {
    dot_range<float, Bf16, Bf16>(layer, begin, count);
  } else {
    dot_range<float, float, Bf16>(layer, begin, count);
  }
}

}  // namespace ddsm::DDSM_ISA
