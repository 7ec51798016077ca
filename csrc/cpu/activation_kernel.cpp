// Rows of sliced_activation and of its gradient (see ddsm/activation.h).
#include "ddsm/activation.h"

#include "activation_range.h"
#include "arithmetic.h"
#include "gelu.h"
#include "group_norm_strips.h"

namespace ddsm::DDSM_ISA {
namespace {

// Rows whose products with the activation are summed in the compute type before they are in double.
constexpr int64_t kSumRows = 8;

// Calls body(Number<vectors>, channel, lanes) so that [begin, end) is covered once: by four
// vectors, by single ones, then by the first lanes of one.
template <class C, class Body>
inline void for_each_piece(int64_t begin, int64_t end, const Body& body) {
  constexpr int64_t kLanes = Lanes<C>::kCount;
  int64_t i = begin;
  for (; i + 4 * kLanes <= end; i += 4 * kLanes) body(Number<4>{}, i, kLanes);
  for (; i + kLanes <= end; i += kLanes) body(Number<1>{}, i, kLanes);
  if (i < end) body(Number<1>{}, i, end - i);
}

// Count vectors of both blocks of a row, `columns` apart, into the nearest cache: two streams of
// some lengths escape a Zen 4's own prefetching (384 columns then took three times as long).
template <int Count, int Write, class T>
inline void prefetch_blocks(const T* row, int64_t columns) {
  constexpr int64_t kBytes = Count * Lanes<Compute<T>>::kCount * sizeof(T);
  for (int64_t byte = 0; byte < kBytes; byte += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(row) + byte, Write);
    __builtin_prefetch(reinterpret_cast<const char*>(row + columns) + byte, Write);
  }
}

template <class T, class TY>
void forward_rows(const ActivationArgs& args, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const bool glu = args.activation == Activation::kGeglu;
  for (int64_t row = begin; row < end; ++row) {
    const T* z = static_cast<const T*>(args.z) + row * args.z_row_stride;
    const C* gate = static_cast<const C*>(args.gate);
    if (gate) gate += row / args.rows * args.channels;
    const TY* residual = static_cast<const TY*>(args.residual);
    if (residual) residual += row * args.residual_row_stride;
    TY* y = static_cast<TY*>(args.y) + row * args.channels;
    for_each_piece<C>(0, args.channels, [&](auto count, int64_t i, int64_t lanes) {
      constexpr int kCount = decltype(count)::kValue;
      Vec<C> value[kCount], other[kCount] = {};
      load_strip(z + i, lanes, value);
      if (glu) {
        load_strip(z + args.channels + i, lanes, other);
        prefetch_blocks<kCount, 0>(z + args.z_row_stride + i, args.channels);
      }
      activate(args.activation, value, other);
      if (gate) {
        load_strip(gate + i, lanes, other);
        for (int v = 0; v < kCount; ++v) value[v] *= other[v];
      }
      if (residual) {
        load_strip(residual + i, lanes, other);
        for (int v = 0; v < kCount; ++v) value[v] += other[v];
      }
      store_strip(y + i, lanes, value);
    });
  }
}

// What a range of the backward has of the gate of its image, and adds to its gradient.
template <class C>
struct GateSums {
  C some[kGateChannels] = {};  // of up to kSumRows rows
  double all[kGateChannels] = {};

  void flush(int64_t channels) {
    for (int64_t i = 0; i < channels; ++i) all[i] += some[i];
    for (int64_t i = 0; i < channels; ++i) some[i] = 0;
  }
};

// Count vectors of a row from channel i on; sums: where the products with the activation are added,
// null: nowhere.
template <int Count, class T, class C = Compute<T>>
inline void backward_strip(const ActivationBackwardArgs& args, int64_t row, int64_t i,
                           int64_t lanes, C* sums) {
  const bool glu = args.activation == Activation::kGeglu;
  const int64_t c = args.channels, columns = glu ? 2 * c : c;
  const T* z = static_cast<const T*>(args.z) + row * args.z_row_stride + i;
  T* grad_z = static_cast<T*>(args.grad_z) + row * columns + i;
  if (glu) {
    prefetch_blocks<Count, 0>(z + args.z_row_stride, c);
    prefetch_blocks<Count, 1>(grad_z + columns, c);
  }
  Vec<C> value[Count], bent[Count], slope[Count], grad[Count], other[Count];
  load_strip(z, lanes, value);
  load_strip(glu ? z + c : z, lanes, bent);
  load_strip(static_cast<const T*>(args.grad_y) + row * args.grad_y_row_stride + i, lanes, grad);
  bend(args.activation, bent, slope);
  if (sums) {
    load_strip(sums, lanes, other);
    for (int v = 0; v < Count; ++v) other[v] += grad[v] * (glu ? value[v] * bent[v] : bent[v]);
    store_strip(sums, lanes, other);
  }
  if (args.gate) {
    load_strip(static_cast<const C*>(args.gate) + row / args.rows * c + i, lanes, other);
    for (int v = 0; v < Count; ++v) grad[v] *= other[v];
  }
  for (int v = 0; v < Count; ++v) other[v] = grad[v] * (glu ? bent[v] : slope[v]);
  store_strip(grad_z, lanes, other);
  if (!glu) return;
  for (int v = 0; v < Count; ++v) other[v] = grad[v] * value[v] * slope[v];
  store_strip(grad_z + c, lanes, other);
}

template <class T>
void backward_range(const ActivationBackwardArgs& args, const ActivationRange& range) {
  using C = Compute<T>;
  const int64_t first = range.channel_begin, channels = range.channel_end - first;
  GateSums<C> sums;
  for (int64_t row = range.row_begin; row < range.row_end; ++row) {
    for_each_piece<C>(first, range.channel_end, [&](auto count, int64_t i, int64_t lanes) {
      backward_strip<decltype(count)::kValue, T>(args, row, i, lanes,
                                                 args.grad_gate ? sums.some + i - first : nullptr);
    });
    const bool flushes = (row - range.row_begin) % kSumRows == kSumRows - 1;
    if (args.grad_gate && flushes) sums.flush(channels);
  }
  if (!args.grad_gate) return;
  sums.flush(channels);
  C* to = static_cast<C*>(args.grad_gate) + range.row_begin / args.rows * args.channels + first;
  for (int64_t i = 0; i < channels; ++i) to[i] = static_cast<C>(sums.all[i]);
}

}  // namespace

void activation_rows(const ActivationArgs& args, int64_t begin, int64_t end) {
  if (args.z_dtype == DType::kFloat64) forward_rows<double, double>(args, begin, end);
  else if (args.z_dtype == DType::kBFloat16) forward_rows<Bf16, Bf16>(args, begin, end);
  else if (args.y_dtype == DType::kBFloat16) forward_rows<float, Bf16>(args, begin, end);
  else forward_rows<float, float>(args, begin, end);
}

void activation_backward_range(const ActivationBackwardArgs& args, const ActivationRange& range) {
  if (args.dtype == DType::kFloat64) backward_range<double>(args, range);
  else if (args.dtype == DType::kBFloat16) backward_range<Bf16>(args, range);
  else backward_range<float>(args, range);
}

}  // namespace ddsm::DDSM_ISA
