// Small matrix products C = A B on scratch memory, for kernels that pack their operands:
// A [m, k] by rows or by columns, B in panels [columns / kPanel][depth][kPanel] (zero-padded),
// C row-major. m and C's columns are padded to whole tiles, so that there is no remainder code.
#pragma once

#include "arithmetic.h"
#include "lanes.h"

namespace ddsm::DDSM_ISA {

// Accumulator tile: kTileRows x 2 vectors, chosen to fill the vector registers
// (28 of 32 with AVX-512, 12 of 16 else, leaving room for two of B and one broadcast of A).
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif
template <class C>
constexpr int64_t kPanel = 2 * Lanes<C>::kCount;

// Depth of one pass over B: a panel of it stays in the first-level cache, and sums start afresh, so
// that a long fp32 product rounds like one of this depth.
constexpr int64_t kDepth = 128;

// How A [m, k] lies in memory: element (i, p) at i * stride + p, or at p * stride + i.
enum class Order { kRows, kColumns };

// What an element of A and a vector of B add to a sum.
template <bool kPairs>
struct Product {
  template <class C>
  static inline Vec<C> add(Vec<C> sum, C a, Vec<C> b) {
    return sum + broadcast(a) * b;
  }
};

// The same where elements of A and B are pairs of bfloat16, neighbours in depth, in the bits of a
// float.
#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
template <>
struct Product<true> {
  static inline Vec<float> add(Vec<float> sum, float a, Vec<float> b) {
    int32_t bits;
    __builtin_memcpy(&bits, &a, sizeof(bits));
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(bits),
                                        (__m512bh)b);
  }
};
#else
constexpr bool kHasPairs = false;
#endif

template <int kRows, int kVectors, Order order, bool kPairs, class C>
static inline void gemm_tile(const C* a, int64_t a_stride, const C* b, int64_t k, C* c,
                             int64_t c_stride, bool accumulate) {
  constexpr int64_t kLanes = Lanes<C>::kCount;
  Vec<C> sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[i][v] = Vec<C>{};
  }
  for (int64_t p = 0; p < k; ++p) {
    Vec<C> row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) row[v] = load(b + p * kPanel<C> + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const C x = order == Order::kRows ? a[i * a_stride + p] : a[p * a_stride + i];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = Product<kPairs>::add(sum[i][v], x, row[v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      C* to = c + i * c_stride + v * kLanes;
      if (accumulate) sum[i][v] += load(to);
      store(to, sum[i][v]);
    }
  }
}

// The rows of one panel and stretch of depth: tiles of kRows, then the few rows left in smaller
// ones.
template <int kRows, int kVectors, Order order, bool kPairs, class C>
static inline void gemm_rows(const C* a, int64_t a_stride, const C* b, int64_t m, int64_t k, C* c,
                             int64_t c_stride, bool accumulate) {
  const int64_t a_row = order == Order::kRows ? a_stride : 1;
  for (; m >= kRows; m -= kRows, a += kRows * a_row, c += kRows * c_stride) {
    gemm_tile<kRows, kVectors, order, kPairs>(a, a_stride, b, k, c, c_stride, accumulate);
  }
  if constexpr (kRows > 2 && order == Order::kRows) {
    constexpr int kFewer = kRows > 8 ? 8 : kRows > 4 ? 4 : 2;
    if (m > 0) {
      gemm_rows<kFewer, kVectors, order, kPairs>(a, a_stride, b, m, k, c, c_stride, accumulate);
    }
  }
}

// C [m, columns] = (accumulate: +=) A [m, k] B; m is even (kColumns: a multiple of kTileRows),
// columns fill whole vectors. b_depth: depth of B's panels, of which the k from b on are used.
template <Order order = Order::kRows, bool kPairs = false, class C>
__attribute__((noinline)) static void gemm(const C* a, int64_t a_stride, const C* b,
                                           int64_t b_depth, int64_t m, int64_t columns, int64_t k,
                                           C* c, int64_t c_stride, bool accumulate = false) {
  for (int64_t from = 0; from < k; from += kDepth) {
    const int64_t depth = k - from < kDepth ? k - from : kDepth;
    const C* tile = order == Order::kRows ? a + from : a + from * a_stride;
    for (int64_t j = 0; j < columns; j += kPanel<C>) {
      const C* panel = b + j * b_depth + from * kPanel<C>;
      const bool more = accumulate || from > 0;
      if (columns - j <= Lanes<C>::kCount) {
        gemm_rows<kTileRows, 1, order, kPairs>(tile, a_stride, panel, m, depth, c + j, c_stride,
                                               more);
      } else {
        gemm_rows<kTileRows, 2, order, kPairs>(tile, a_stride, panel, m, depth, c + j, c_stride,
                                               more);
      }
    }
  }
}

// rows [count, width] (row stride in elements) * factor -> dense C rows, zero rows up to `padded`.
template <class T, class C>
__attribute__((noinline)) static void copy_rows(const T* rows, int64_t stride, int64_t count,
                                                int64_t width, C factor,
                                                int64_t padded, C* out) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      out[i * width + j] = to_compute(rows[i * stride + j]) * factor;
    }
  }
  for (int64_t j = count * width; j < padded * width; ++j) out[j] = 0;
}

// B[k][column] = rows[k][column]: panels whose depth runs over the rows.
template <class T, class C>
__attribute__((noinline)) static void pack_rows(const T* rows, int64_t stride, int64_t count,
                                                int64_t width, C* out) {
  constexpr int64_t kLanes = Lanes<C>::kCount;
  // A few rows at a time: rows 1 KB apart share few cache sets, and so do the panels.
  constexpr int64_t kRows = 8;
  for (int64_t from = 0; from < count; from += kRows) {
    const int64_t to = count - from < kRows ? count : from + kRows;
    for (int64_t j = 0; j < width; j += kPanel<C>) {
      const int64_t used = width - j < kPanel<C> ? width - j : kPanel<C>;
      for (int64_t k = from; k < to; ++k) {
        const T* row = rows + k * stride + j;
        C* packed = out + j * count + k * kPanel<C>;
        if (used == kPanel<C>) {
          store(packed, load(row));
          store(packed + kLanes, load(row + kLanes));
        } else if (used > kLanes) {
          store(packed, load(row));
          store(packed + kLanes, load_first(row + kLanes, used - kLanes));
        } else {
          store(packed, load_first(row, used));
          store(packed + kLanes, Vec<C>{});
        }
      }
    }
  }
}

// B[k / 2][column] = the pair rows[k][column], rows[k + 1][column]; zero beyond the last row.
__attribute__((noinline)) static void pack_row_pairs(const Bf16* rows, int64_t stride,
                                                     int64_t count, int64_t width, float* out) {
  uint32_t* packed = reinterpret_cast<uint32_t*>(out);
  for (int64_t j = 0; j < width; j += kPanel<float>) {
    const int64_t used = width - j < kPanel<float> ? width - j : kPanel<float>;
    for (int64_t k = 0; k < count; k += 2, packed += kPanel<float>) {
      const Bf16 *low = rows + k * stride + j, *high = low + stride;
      for (int64_t i = 0; i < kPanel<float>; ++i) {
        const uint32_t first = i < used ? low[i].bits : 0;
        const uint32_t second = i < used && k + 1 < count ? high[i].bits : 0;
        packed[i] = first | second << 16;
      }
    }
  }
}

// B[k][column] = rows[column][k]: panels whose columns are the rows.
template <class T, class C>
__attribute__((noinline)) static void pack_transposed(const T* rows, int64_t stride, int64_t count,
                                                      int64_t width, C* out) {
  constexpr int64_t kLanes = Lanes<C>::kCount;
  for (int64_t j = 0; j < count; j += kPanel<C>, out += width * kPanel<C>) {
    for (int64_t i = j; i < j + kPanel<C>; i += kLanes) {
      const T* row = rows + i * stride;
      C* packed = out + i - j;
      const int64_t used = smaller(kLanes, count - i);
      for (int64_t k = 0; k < width; k += kLanes) {
        const int64_t length = smaller(kLanes, width - k);
        Vec<C> tile[kLanes];
        if (used == kLanes && length == kLanes) {
#pragma GCC unroll 16
          for (int64_t r = 0; r < kLanes; ++r) tile[r] = load(row + r * stride + k);
          transpose<C>(tile);
#pragma GCC unroll 16
          for (int64_t r = 0; r < kLanes; ++r) store(packed + (k + r) * kPanel<C>, tile[r]);
          continue;
        }
        for (int64_t r = 0; r < kLanes; ++r) {
          tile[r] = r < used ? load_first(row + r * stride + k, length) : Vec<C>{};
        }
        if (used > 0) transpose<C>(tile);
        for (int64_t r = 0; r < length; ++r) store(packed + (k + r) * kPanel<C>, tile[r]);
      }
    }
  }
}

}  // namespace ddsm::DDSM_ISA
