// What the group norm kernels share: a block's place in the work, its walk over rows of pixels,
// sums over groups, and its channels' coefficients.
//
// A block covers some pixels of an image and at most kNormChannels adjacent channels of a source.
// A thread keeps V channels (16 bytes; V = 1 where memory is not aligned) and takes every `step`-th
// of the pixels ("rows").
#pragma once

#include <type_traits>

#include "group_norm_params.h"
#include "packs.cuh"

namespace ddsm {

// Not by an index into an array of a kernel's parameters: it would copy them to local memory.
template <class V>
DDSM_DEVICE V pick(bool second, V a, V b) {
  return second ? b : a;
}

template <class T, class V>
DDSM_DEVICE NormSource<T> source_of(const NormParams<T, V>& p, bool second) {
  const NormSource<T>&a = p.sources[0], &b = p.sources[1];
  return {pick(second, a.x, b.x),
          pick(second, a.grad_y, b.grad_y),
          pick(second, a.out, b.out),
          pick(second, a.x_stride, b.x_stride),
          pick(second, a.grad_stride, b.grad_stride),
          pick(second, a.c, b.c),
          pick(second, a.first_channel, b.first_channel),
          pick(second, a.param_offset, b.param_offset),
          pick(second, a.chunks, b.chunks),
          pick(second, a.chunk_channels, b.chunk_channels)};
}

template <class V>
DDSM_DEVICE NormParts<V> parts_of(const NormParts<V> (&of)[2], bool second) {
  NormParts<V> parts;
  parts.data = pick(second, of[0].data, of[1].data);
  parts.pixels = pick(second, of[0].pixels, of[1].pixels);
  parts.count = pick(second, of[0].count, of[1].count);
  parts.blocks.divisor = pick(second, of[0].blocks.divisor, of[1].blocks.divisor);
  parts.blocks.multiplier = pick(second, of[0].blocks.multiplier, of[1].blocks.multiplier);
  parts.blocks.shift = pick(second, of[0].blocks.shift, of[1].blocks.shift);
  return parts;
}

// The block's part of the work. channel: its first one in its source.
struct NormPlace {
  int32_t image, row_block, channel, channels;
  bool second;

  template <class T, class V>
  static DDSM_DEVICE NormPlace of(const NormParams<T, V>& p) {
    const auto first = static_cast<unsigned>(p.sources[0].chunks);
    const unsigned chunks = first + p.sources[1].chunks, chunk = ptx::block_index() % chunks;
    const unsigned index = ptx::block_index() / chunks;
    const unsigned image = index / p.row_blocks, row_block = index - image * p.row_blocks;
    const bool second = chunk >= first;
    const int32_t size =
        pick(second, p.sources[0].chunk_channels, p.sources[1].chunk_channels);
    const int32_t channel = static_cast<int32_t>(second ? chunk - first : chunk) * size;
    const int32_t left = pick(second, p.sources[0].c, p.sources[1].c) - channel;
    return {static_cast<int32_t>(image), static_cast<int32_t>(row_block), channel,
            left < size ? left : size, second};
  }
};

// A row's registers are what is worked on.
struct AsItIs {
  template <class Rows>
  DDSM_DEVICE Rows operator()(const Rows& rows) const {
    return rows;
  }
};

// The rows of a thread: `count` of them, first, first + step, ...; an idle thread has none.
struct RowWalk {
  int32_t first, step, count;
  int32_t channel;  // its first one in the block

  template <int V>
  static DDSM_DEVICE RowWalk of(int threads, int32_t channels, int32_t rows) {
    const int32_t thread = ptx::thread_index(), packs = channels / V, step = threads / packs;
    const int32_t first = thread / packs, pack = thread - first * packs;
    const bool idle = first >= step || first >= rows;
    return {first, step, idle ? 0 : (rows - first + step - 1) / step, pack * V};
  }

  // kAhead rows are loaded before they are needed, the first of them by `start`.
  template <int kAhead, class Rows, class Load>
  DDSM_DEVICE void start(Rows (&ahead)[kAhead], Load& load) const {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      load(ahead[k], k < count);
    }
  }
  // finish(begin(row), whether there is such a row) for each; what `begin` needs of a row's
  // registers is free for the next one's.
  template <int kAhead, class Rows, class Load, class Begin, class Finish>
  DDSM_DEVICE void run(Rows (&ahead)[kAhead], Load& load, const Begin& begin,
                       const Finish& finish) const {
    for (int32_t left = count; left > 0; left -= kAhead) {
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const auto begun = begin(ahead[k]);
        load(ahead[k], left > kAhead + k);
        finish(begun, left > k);
      }
    }
  }
};

constexpr float kNormLog2E = 1.4426950408889634f;

DDSM_DEVICE float sigmoid(float u) {
  return ptx::reciprocal(1.0f + ptx::exp2(-kNormLog2E * u));
}
// The approximate reciprocal's error is far below the rounding of 16-bit numbers; for float the
// quotient is corrected once, of a divisor that is kept finite.
template <class T>
DDSM_DEVICE float silu(float u) {
  if constexpr (sizeof(T) == 2) {
    return u * sigmoid(u);
  } else {
    const float divisor = 1.0f + ptx::exp2(fminf(-kNormLog2E * u, 126.0f));
    const float inverse = ptx::reciprocal(divisor), y = u * inverse;
    return fmaf(fmaf(-y, divisor, u), inverse, y);
  }
}

template <class T, class V>
DDSM_DEVICE float load_param(const NormParams<T, V>& p, const void* data, int64_t index) {
  if (p.wide_params) return ptx::load_global(static_cast<const float*>(data) + index);
  return to_float(ptx::load_global(static_cast<const T*>(data) + index));
}

// 1 + scale of a channel of both sources as one.
template <class T, class V>
DDSM_DEVICE float scale_of(const NormParams<T, V>& p, int32_t image, int32_t channel) {
  return 1.0f + to_float(ptx::load_global(p.scale + image * p.modulation_stride + channel));
}

// What a normalised channel of an image is multiplied by, and what is added to the product.
struct Modulated {
  float gamma, beta;

  // channel: of both sources as one; param: its place in weight and bias.
  template <class T, class V>
  static DDSM_DEVICE Modulated of(const NormParams<T, V>& p, int32_t image, int32_t channel,
                                  int64_t param) {
    const Modulated plain{load_param(p, p.weight, param), load_param(p, p.bias, param)};
    if (!p.scale) return plain;
    const float factor = scale_of(p, image, channel);
    const int64_t at = image * p.modulation_stride + channel;
    return {plain.gamma * factor,
            fmaf(plain.beta, factor, to_float(ptx::load_global(p.shift + at)))};
  }
};

// ---- Sums over groups --------------------------------------------------------------------------
// Shared memory of a block of kApplyThreads: sums of threads, sums of lanes, coefficients. 16 bytes
// a thread side by side: no two threads of a quarter of a warp meet in a bank.
struct alignas(16) GroupSums {
  double first, second;
};
// At most this many columns of threads: those of the groups that a block's channels belong to.
constexpr int kMostColumns = 3 * kNormChannels;
constexpr uint32_t kLaneSums = kApplyThreads * sizeof(GroupSums);
constexpr uint32_t kCoefficients = kLaneSums + kMostColumns * sizeof(GroupSums);

DDSM_DEVICE void add(GroupSums& sum, const GroupSums& other) {
  sum.first += other.first;
  sum.second += other.second;
}

// The groups, counted within an image, that the block's channels belong to.
struct GroupSpan {
  int32_t first, count;
  int32_t columns, lanes;

  template <class T, class V>
  static DDSM_DEVICE GroupSpan of(const NormParams<T, V>& p, int32_t first_channel,
                                  int32_t channels) {
    const int32_t first = first_channel / p.group_size;
    const int32_t last = (first_channel + channels - 1) / p.group_size;
    return {first, last - first + 1, p.columns, p.lanes};
  }
};

// Sums over all parts of each of the groups, of the block's own channels and of others. A thread
// takes every columns-th channel of a group, and every `step`-th of their parts:
// add_parts(group, channel of both sources as one, first part, step, sum). One order, for any
// number of threads that there are.
template <class AddParts>
DDSM_DEVICE void sum_groups(const GroupSpan& groups, int32_t group_size,
                            const AddParts& add_parts) {
  const int32_t thread = ptx::thread_index(), width = groups.count * groups.columns;
  const int32_t row = thread / width, step = kApplyThreads / width;
  if (row < step) {
    const int32_t column = thread - row * width, local = column / groups.columns;
    const int32_t group = groups.first + local;
    GroupSums sum{};
    for (int32_t c = column - local * groups.columns; c < group_size; c += groups.columns) {
      add_parts(group, group * group_size + c, row, step, sum);
    }
    ptx::store_shared(thread * uint32_t(sizeof(GroupSums)), sum);
  }
  ptx::sync_threads();
  if (thread < groups.count * groups.lanes) {
    const int32_t local = thread / groups.lanes, lane = thread - local * groups.lanes;
    GroupSums sum{};
    for (int32_t r = 0; r < step; ++r) {
      for (int32_t c = lane; c < groups.columns; c += groups.lanes) {
        const int32_t from = r * width + local * groups.columns + c;
        add(sum, ptx::load_shared<GroupSums>(from * uint32_t(sizeof(GroupSums))));
      }
    }
    ptx::store_shared(kLaneSums + thread * uint32_t(sizeof(GroupSums)), sum);
  }
  ptx::sync_threads();
}

// The sum that sum_groups left of a group.
DDSM_DEVICE GroupSums sum_of_group(const GroupSpan& groups, int32_t group) {
  const uint32_t from = kLaneSums + (group - groups.first) * groups.lanes * sizeof(GroupSums);
  GroupSums sum{};
  for (int32_t lane = 0; lane < groups.lanes; ++lane) {
    add(sum, ptx::load_shared<GroupSums>(from + lane * uint32_t(sizeof(GroupSums))));
  }
  return sum;
}

// Calls body(first part of up to 4, its values; their numbers of pixels) for a thread's parts of a
// channel; parts without pixels are not read. Four loads are under way at a time.
template <class V, class Body>
DDSM_DEVICE void for_parts(const NormParts<V>& parts, int32_t image, int32_t c, int32_t channel,
                           int32_t row, int32_t step, const Body& body) {
  constexpr int kLoads = 4;
  const V* data = parts.data + int64_t(image) * parts.count * c + channel;
  for (int32_t first = row; first < parts.count; first += kLoads * step) {
    std::remove_const_t<V> values[kLoads];
    int32_t pixels[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int32_t r = first + i * step;
      const int32_t blocks = static_cast<int32_t>(parts.blocks.divisor);
      const int32_t block = r - parts.blocks.quotient(r) * blocks;
      const int64_t found = moment_block_pixels(parts.pixels, image, block);
      pixels[i] = r < parts.count ? static_cast<int32_t>(found) : 0;
      if (pixels[i] > 0) values[i] = ptx::load_global(data + int64_t(r) * c);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (pixels[i] > 0) body(values[i], pixels[i]);
    }
  }
}

// ---- Coefficients ------------------------------------------------------------------------------
// kCount numbers of each of the block's channels, behind `at` in shared memory. Four of a pack's
// channels lie together and packs side by side, so that threads of adjacent packs read 16 bytes of
// adjacent banks: the 8 numbers of a pack in one place would meet in the same four banks.
template <int V, int kCount>
struct Coefficients {
  static constexpr int kTogether = V < 4 ? V : 4;
  static constexpr uint32_t kBytes = kCount * kNormChannels * sizeof(float);
  float of[kCount][V];

  static DDSM_DEVICE uint32_t address(uint32_t at, int32_t packs, int which, int32_t channel) {
    const int32_t pack = channel / V, i = channel % V;
    const int32_t place = (i / kTogether * packs + pack) * kTogether + i % kTogether;
    return at + (which * kNormChannels + place) * uint32_t(sizeof(float));
  }
  static DDSM_DEVICE void put(uint32_t at, int32_t channels, int32_t channel,
                              const float (&value)[kCount]) {
#pragma unroll
    for (int which = 0; which < kCount; ++which) {
      ptx::store_shared(address(at, channels / V, which, channel), value[which]);
    }
  }
  DDSM_DEVICE void get(uint32_t at, int32_t channels, int32_t first_channel) {
#pragma unroll
    for (int which = 0; which < kCount; ++which) {
#pragma unroll
      for (int i = 0; i < V; i += kTogether) {
        const auto four = ptx::load_shared<Pack<float, kTogether>>(
            address(at, channels / V, which, first_channel + i));
#pragma unroll
        for (int j = 0; j < kTogether; ++j) of[which][i + j] = four.lane[j];
      }
    }
  }
};

}  // namespace ddsm
