// Vectors of one instruction set for *_kernel.cpp files: loads, stores and exp.
// Elements in memory (float, double, Bf16) are computed on as float, float's or double's lanes.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "ddsm/types.h"

namespace ddsm::DDSM_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct Bf16 {
  uint16_t bits;
};

// The type that an element type is computed in, and its integer of the same size.
template <class T>
struct ComputeOf {
  using Type = T;
};
template <>
struct ComputeOf<Bf16> {
  using Type = float;
};
template <class T>
using Compute = typename ComputeOf<T>::Type;

template <class C>
struct Lanes;
template <>
struct Lanes<float> {
  static constexpr int kCount = kVectorBytes / 4;
  typedef float Vec __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Int __attribute__((vector_size(kVectorBytes)));
  typedef float InMemory __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct Lanes<double> {
  static constexpr int kCount = kVectorBytes / 8;
  typedef double Vec __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Int __attribute__((vector_size(kVectorBytes)));
  typedef double InMemory __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
template <class C>
using Vec = typename Lanes<C>::Vec;

typedef uint32_t Bf16Wide __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Bf16InMemory __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

static inline float to_compute(float x) { return x; }
static inline double to_compute(double x) { return x; }
static inline float to_compute(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof(result));
  return result;
}

static inline void from_compute(float x, float* out) { *out = x; }
static inline void from_compute(double x, double* out) { *out = x; }
static inline void from_compute(float x, Bf16* out) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  // Round to nearest even; a NaN must not be rounded up into an infinity or zero.
  out->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class C>
static inline Vec<C> broadcast(C x) {
  return x - Vec<C>{};
}

static inline Vec<float> load(const float* p) {
  return *reinterpret_cast<const Lanes<float>::InMemory*>(p);
}
static inline Vec<double> load(const double* p) {
  return *reinterpret_cast<const Lanes<double>::InMemory*>(p);
}
static inline Vec<float> load(const Bf16* p) {
  const Bf16InMemory half = *reinterpret_cast<const Bf16InMemory*>(p);
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#elif defined(__AVX2__)
  // One instruction; GCC 12 makes four of the portable form.
  return (Vec<float>)((Bf16Wide)_mm256_cvtepu16_epi32((__m128i)half) << 16);
#else
  return (Vec<float>)(__builtin_convertvector(half, Bf16Wide) << 16);
#endif
}

static inline void store(float* p, Vec<float> v) {
  *reinterpret_cast<Lanes<float>::InMemory*>(p) = v;
}
static inline void store(double* p, Vec<double> v) {
  *reinterpret_cast<Lanes<double>::InMemory*>(p) = v;
}
static inline Bf16InMemory to_bf16(Vec<float> v) {
  const Bf16Wide bits = (Bf16Wide)v;
  const Bf16Wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bf16Wide is_nan = (Bf16Wide)(v != v);
  const Bf16Wide kept = (rounded & ~is_nan) | (is_nan & 0x7fc0);
  return __builtin_convertvector(kept, Bf16InMemory);
}
static inline void store(Bf16* p, Vec<float> v) {
  *reinterpret_cast<Bf16InMemory*>(p) = to_bf16(v);
}

// The first `count` (at most a vector's) elements at p, zeros in the other lanes; no other memory
// is touched.
template <class T>
static inline Vec<Compute<T>> load_first(const T* p, int64_t count) {
  Compute<T> lanes[Lanes<Compute<T>>::kCount] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = to_compute(p[i]);
  return load(lanes);
}

template <class T>
static inline void store_first(T* p, Vec<Compute<T>> v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) from_compute(v[i], p + i);
}

#if defined(__AVX512F__)
static inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>((1u << count) - 1);
}
static inline Vec<float> load_first(const float* p, int64_t count) {
  return (Vec<float>)_mm512_maskz_loadu_ps(first_lanes(count), p);
}
static inline Vec<double> load_first(const double* p, int64_t count) {
  return (Vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(count)), p);
}
static inline Vec<float> load_first(const Bf16* p, int64_t count) {
  const __m256i half = _mm256_maskz_loadu_epi16(first_lanes(count), p);
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}
static inline void store_first(float* p, Vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), (__m512)v);
}
static inline void store_first(double* p, Vec<double> v, int64_t count) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(count)), (__m512d)v);
}
static inline void store_first(Bf16* p, Vec<float> v, int64_t count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), (__m256i)to_bf16(v));
}
#elif defined(__AVX2__)
// Ones in the first `count` of 8 lanes of 4 bytes.
static inline __m256i first_lanes(int64_t count) {
  alignas(32) static const int32_t kOnesThenZeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kOnesThenZeros + 8 - count));
}
static inline Vec<float> load_first(const float* p, int64_t count) {
  return (Vec<float>)_mm256_maskload_ps(p, first_lanes(count));
}
static inline Vec<double> load_first(const double* p, int64_t count) {
  return (Vec<double>)_mm256_maskload_pd(p, first_lanes(2 * count));
}
static inline void store_first(float* p, Vec<float> v, int64_t count) {
  _mm256_maskstore_ps(p, first_lanes(count), (__m256)v);
}
static inline void store_first(double* p, Vec<double> v, int64_t count) {
  _mm256_maskstore_pd(p, first_lanes(2 * count), (__m256d)v);
}
#endif

// Half a vector, for the last lanes where it takes half the time: a Zen 4 works on 64 bytes in two
// halves, and an AVX2 or SSE register has no cheaper half.
constexpr bool kHasHalves = kVectorBytes == 64;
typedef float HalfVec __attribute__((vector_size(kVectorBytes / 2)));

// Vector types by name, for code that takes whole vectors and halves of float.
template <class V>
static inline V load_as(const float* p) {
  typedef float InMemory __attribute__((vector_size(sizeof(V)), aligned(4), may_alias));
  return (V)*reinterpret_cast<const InMemory*>(p);
}
template <class V>
static inline void store_as(float* p, V v) {
  typedef float InMemory __attribute__((vector_size(sizeof(V)), aligned(4), may_alias));
  *reinterpret_cast<InMemory*>(p) = (InMemory)v;
}

// The same for one vector of a pixel's few channels: 4 and 8 of them, which are many networks', as
// a load or store of just their size, so that stores are forwarded to loads.
template <class T>
static inline Vec<float> load_few(const T* p, int64_t count) { return load_first(p, count); }
template <class T>
static inline void store_few(T* p, Vec<float> v, int64_t count) { store_first(p, v, count); }
#if defined(__AVX512F__)
static inline Vec<float> load_few(const float* p, int64_t count) {
  if (count == 8) return (Vec<float>)_mm512_castps256_ps512(_mm256_loadu_ps(p));
  if (count == 4) return (Vec<float>)_mm512_castps128_ps512(_mm_loadu_ps(p));
  return load_first(p, count);
}
static inline void store_few(float* p, Vec<float> v, int64_t count) {
  if (count == 8) _mm256_storeu_ps(p, _mm512_castps512_ps256((__m512)v));
  else if (count == 4) _mm_storeu_ps(p, _mm512_castps512_ps128((__m512)v));
  else store_first(p, v, count);
}
#endif

// The same lanes in a whole vector; the others hold anything.
static inline Vec<float> widened(Vec<float> v) { return v; }
static inline Vec<float> widened(HalfVec v) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_castps256_ps512((__m256)v);
#else
  float lanes[Lanes<float>::kCount] = {};
  store_as(lanes, v);
  return load(lanes);
#endif
}

// The sum of the lanes, in double.
template <class C>
static inline double sum_of(Vec<C> v) {
  C values[Lanes<C>::kCount];
  double lanes[Lanes<C>::kCount];
  store(values, v);
  for (int i = 0; i < Lanes<C>::kCount; ++i) lanes[i] = values[i];
#pragma GCC unroll 4
  for (int half = Lanes<C>::kCount / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Rows become columns, in place: log2(lanes) perfect shuffles of all rows, each of which rotates
// the bits of an element's (row, lane) number by one.
template <class C>
static inline void transpose(Vec<C> (&rows)[Lanes<C>::kCount]) {
  constexpr int kLanes = Lanes<C>::kCount;
  typename Lanes<C>::Int low = {}, high = {};
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i / 2 + i % 2 * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Vec<C> shuffled[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      shuffled[2 * i] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], low);
      shuffled[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = shuffled[i];
  }
}

// e^x in place for Count vectors, step by step for all of them: one alone is a chain of 20
// dependent operations, of which a core's scheduler (Zen 3: 64 entries) overlaps too few by itself.
// To about 1 ulp; x is clamped to the range in which e^x is a normal number; NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 leaves n in the low bits of the sum.
// Minimax polynomial of (e^r - 1 - r) / r^2; relative error of e^r 1.1e-8.
constexpr int kExpTerms = 5;
constexpr float kExpPolynomial[kExpTerms] = {1.392625e-3f, 8.363233e-3f, 4.1666552e-2f,
                                             1.6666576e-1f, 0.5f};

#if defined(__AVX512F__)
// e^x in place for x > -104 or NaN; infinity where it overflows.
template <int Count>
static inline void exp_above(Vec<float> (&x)[Count]) {
  __m512 n[Count], q[Count];
  for (int i = 0; i < Count; ++i) {
    n[i] = _mm512_roundscale_ps((__m512)(x[i] * 1.44269504f), _MM_FROUND_TO_NEAREST_INT);
  }
  for (int i = 0; i < Count; ++i) x[i] = x[i] - (Vec<float>)n[i] * 0.693359375f;
  for (int i = 0; i < Count; ++i) x[i] = x[i] + (Vec<float>)n[i] * 2.12194440e-4f;
  for (int i = 0; i < Count; ++i) q[i] = _mm512_set1_ps(kExpPolynomial[0]);
  for (int c = 1; c < kExpTerms; ++c) {
    for (int i = 0; i < Count; ++i) q[i] = (__m512)((Vec<float>)q[i] * x[i] + kExpPolynomial[c]);
  }
  for (int i = 0; i < Count; ++i) q[i] = (__m512)((Vec<float>)q[i] * x[i] + 1.0f);
  for (int i = 0; i < Count; ++i) q[i] = (__m512)((Vec<float>)q[i] * x[i] + 1.0f);
  for (int i = 0; i < Count; ++i) x[i] = (Vec<float>)_mm512_scalef_ps(q[i], n[i]);
}

template <int Count>
static inline void exp(Vec<float> (&x)[Count]) {
  const Vec<float> high = broadcast(88.3f), low = broadcast(-87.3f);
  for (int i = 0; i < Count; ++i) x[i] = x[i] > high ? high : x[i];
  for (int i = 0; i < Count; ++i) x[i] = x[i] < low ? low : x[i];
  exp_above(x);
}
#else
template <int Count>
static inline void exp(Vec<float> (&x)[Count]) {
  const Vec<float> high = broadcast(88.3f), low = broadcast(-87.3f);
  const float magic = 12582912.0f;
  Vec<float> shifted[Count], n[Count], q[Count];
  for (int i = 0; i < Count; ++i) x[i] = x[i] > high ? high : x[i];
  for (int i = 0; i < Count; ++i) x[i] = x[i] < low ? low : x[i];
  for (int i = 0; i < Count; ++i) shifted[i] = x[i] * 1.44269504f + magic;
  for (int i = 0; i < Count; ++i) n[i] = shifted[i] - magic;
  // ln 2 in two parts, the first short enough for n * 0.693359375 to be exact.
  for (int i = 0; i < Count; ++i) x[i] = x[i] - n[i] * 0.693359375f;
  for (int i = 0; i < Count; ++i) x[i] = x[i] + n[i] * 2.12194440e-4f;
  for (int i = 0; i < Count; ++i) q[i] = broadcast(kExpPolynomial[0]);
  for (int c = 1; c < kExpTerms; ++c) {
    for (int i = 0; i < Count; ++i) q[i] = q[i] * x[i] + kExpPolynomial[c];
  }
  for (int i = 0; i < Count; ++i) q[i] = q[i] * x[i];
  for (int i = 0; i < Count; ++i) q[i] = q[i] * x[i] + x[i];
  for (int i = 0; i < Count; ++i) {
    x[i] = (q[i] + 1.0f) * (Vec<float>)(((Lanes<float>::Int)shifted[i] + 127) << 23);
  }
}
#endif

template <int Count>
static inline void exp(Vec<double> (&x)[Count]) {
  const Vec<double> high = broadcast(709.0), low = broadcast(-708.0);
  const double magic = 6755399441055744.0;
  // Taylor series; the first term left out is below 4e-18 for |r| <= ln 2 / 2.
  constexpr double kInverseFactorials[] = {
      1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
      1.0 / 40320.0,      1.0 / 5040.0,      1.0 / 720.0,      1.0 / 120.0,     1.0 / 24.0,
      1.0 / 6.0,          0.5};
  for (int i = 0; i < Count; ++i) {
    x[i] = x[i] > high ? high : x[i];
    x[i] = x[i] < low ? low : x[i];
    const Vec<double> shifted = x[i] * 1.4426950408889634 + magic;
    const Vec<double> n = shifted - magic;
    const Vec<double> r = (x[i] - n * 0.6931471803691238) - n * 1.9082149292705877e-10;
    Vec<double> q = {};
    for (double coefficient : kInverseFactorials) q = q * r + coefficient;
    const Vec<double> p = (q * r) * r + r + 1.0;
    x[i] = p * (Vec<double>)(((Lanes<double>::Int)shifted + 1023) << 52);
  }
}

// x * sigmoid(x) in place. Below -1000 it is 0 as there, since exp ends at the largest number.
template <int Count, class V>
static inline void silu(V (&x)[Count]) {
  const V low = V{} - 1000;
  V e[Count];
  for (int i = 0; i < Count; ++i) e[i] = -x[i];
  exp(e);
  for (int i = 0; i < Count; ++i) x[i] = (x[i] < low ? low : x[i]) / (1 + e[i]);
}

#if defined(__AVX512F__)
// AVX-512's own rounding and scaling need fewer steps, and an overflow is a quotient of zero (on a
// Zen 4 3.4 ns a vector of 16 instead of 4.5).
template <int Count>
static inline void silu(Vec<float> (&x)[Count]) {
  const Vec<float> low = broadcast(-104.0f);
  Vec<float> e[Count];
  for (int i = 0; i < Count; ++i) e[i] = -x[i];
  for (int i = 0; i < Count; ++i) e[i] = e[i] < low ? low : e[i];
  exp_above(e);
  for (int i = 0; i < Count; ++i) x[i] = x[i] / (1 + e[i]);
}
#endif

}  // namespace ddsm::DDSM_ISA
