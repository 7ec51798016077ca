// From a warpgroup's sums in registers to what the sm_90a convolution stores. Everything here is of
// one warpgroup; the other one multiplies meanwhile.
//
//   begin   before the products: bias, shift, gate and residual are asked for
//   finish  after them: sums of other splits, terms, activation and gate, rounding, y by a bulk
//           copy, moments
#pragma once

#include "conv2d_epilogue.cuh"
#include "conv2d_sm90_tile.cuh"

namespace ddsm {

template <class Tile>
struct HopperEpilogue {
  using T = typename Tile::Element;
  static constexpr int kChunk = 8;  // columns of 16 bytes
  static constexpr int kTerms = (Tile::kHalves * Tile::kN + ptx::kWarpgroup - 1) / ptx::kWarpgroup;
  static constexpr bool kActivated = is_activated(Tile::kKind);
  static constexpr bool kGeglu = Tile::kKind == ConvKind::kGeglu;
  static constexpr int kGates =
      (Tile::kHalves * Tile::kColumns + ptx::kWarpgroup - 1) / ptx::kWarpgroup;

  const HopperConvParams& p;
  int warpgroup, thread;      // in the block, in the warpgroup
  uint32_t residual_parity = 0;
  // Of the columns that the thread stores for all; as they come, so that nothing waits for them.
  struct Term {
    T bias, shortcut_bias, shift;
  };
  Term terms[kTerms];
  T gates[kGates];

  DDSM_DEVICE HopperEpilogue(const HopperConvParams& params, int of_block)
      : p(params), warpgroup(of_block), thread(ptx::thread_index() % ptx::kWarpgroup) {}

  DDSM_DEVICE void sync() const { ptx::sync_warpgroup(1 + warpgroup); }
  // Whether the thread is the one that starts the warpgroup's copies.
  DDSM_DEVICE bool copies() const { return thread == 0; }

  // The column of y where the tile's first one lies, and how many of its part are left from there.
  DDSM_DEVICE int32_t first_column(const TileWork& work) const {
    return work.part * static_cast<int32_t>(p.conv.parts.columns.divisor) + work.column;
  }
  DDSM_DEVICE int32_t columns_left(const TileWork& work) const {
    return static_cast<int32_t>(p.conv.parts.columns.divisor) - work.column;
  }
  // Whether the shift is one of each half's terms.
  DDSM_DEVICE bool half_has_image() const { return p.conv.rows.pixels.divisor % 64 == 0; }
  // Whether threads put a residual or a shift of each row where bulk copies put residuals.
  DDSM_DEVICE bool adds_rows() const {
    const EpilogueParams& e = p.conv.epilogue;
    return (e.residual && !p.copies_residual) || (e.shift && !half_has_image());
  }

  DDSM_DEVICE void begin(const TileWork& work) {
    if (copies()) {
      ptx::copy_out_wait();
      // Of several splits only the last one to come reads it.
      if (p.copies_residual && p.conv.splits == 1) load_residual(work);
    }
#pragma unroll
    for (int i = 0; i < kTerms; ++i) terms[i] = term_of(work, thread + i * ptx::kWarpgroup);
    if constexpr (kActivated) {
#pragma unroll
      for (int i = 0; i < kGates; ++i) gates[i] = gate_of(work, thread + i * ptx::kWarpgroup);
    }
  }

  DDSM_DEVICE void load_residual(const TileWork& work) const {
    const uint32_t mbarrier = Tile::residual(warpgroup);
    ptx::mbarrier_arrive_expect(mbarrier, Tile::kOutBytes);
#pragma unroll
    for (int column = 0; column < Tile::kColumns; column += Tile::kOutColumns) {
      ptx::copy_tiled(p.residual, Tile::out_address(warpgroup, 0, column), mbarrier,
                      {first_column(work) + column, work.m0, 0, 0});
    }
  }

  // What the item-th term, a column of a half, is the sum of. Weights here are of the images' type.
  DDSM_DEVICE Term term_of(const TileWork& work, int item) const {
    const int half = item / Tile::kN, block = item % Tile::kN / Tile::kColumns;  // GEGLU's
    const int column = item % Tile::kColumns;
    const EpilogueParams& e = p.conv.epilogue;
    const int32_t m = work.m0 + half * 64, n = first_column(work) + column;
    Term term{};
    if (half >= Tile::kHalves || column >= columns_left(work)) return term;
    const void* bias = p.conv.parts.bias_of(work.part + block);
    if (bias) term.bias = ptx::load_global(static_cast<const T*>(bias) + work.column + column);
    if (e.shortcut_bias) {
      term.shortcut_bias = ptx::load_global(static_cast<const T*>(e.shortcut_bias) + n);
    }
    if (e.shift && half_has_image() && m < p.conv.m) {
      const int64_t image = p.conv.rows.at(m).image;
      term.shift = ptx::load_global(static_cast<const T*>(e.shift) + image * e.shift_stride + n);
    }
    return term;
  }

  // What the item-th product by a gate, of a column of y and a half, has.
  DDSM_DEVICE T gate_of(const TileWork& work, int item) const {
    const int half = item / Tile::kColumns, column = item % Tile::kColumns;
    const EpilogueParams& e = p.conv.epilogue;
    const int32_t m = work.m0 + half * 64;
    if (!e.gate || half >= Tile::kHalves || column >= columns_left(work) || m >= p.conv.m) {
      return T{};
    }
    return ptx::load_global(static_cast<const T*>(e.gate) +
                            p.conv.rows.at(m).image * e.gate_stride + first_column(work) + column);
  }

  DDSM_DEVICE void finish(Tile& tile, const TileWork& work) {
    if constexpr (!Tile::kShared) {
      if (p.conv.splits > 1 && !add_splits(tile, work)) return;
    }
    if (p.copies_residual && p.conv.splits > 1 && copies()) load_residual(work);
#pragma unroll
    for (int i = 0; i < kTerms; ++i) {
      const int item = thread + i * ptx::kWarpgroup;
      if (item < Tile::kHalves * Tile::kN) {
        const float sum = to_float(terms[i].bias) + to_float(terms[i].shortcut_bias) +
                          to_float(terms[i].shift);
        ptx::store_shared(Tile::term_address(warpgroup, item / Tile::kN, item % Tile::kN), sum);
      }
    }
    if constexpr (kActivated) store_gates();
    sync();  // the terms are there; the copies out and moments of the tile before are done with
    if (p.copies_residual) {
      ptx::mbarrier_wait(Tile::residual(warpgroup), residual_parity, p.stall, kResidual, warpgroup);
      residual_parity ^= 1;
    } else if (adds_rows()) {
      fill_rows(work);
      sync();
    }
    round(tile);
    ptx::pass_to_copies();
    sync();
    if (p.copies_y) {
      if (copies()) copy_y(work);
    } else {
      store_y(work);
    }
    if (p.conv.epilogue.moments) store_moments(work);
    sync();  // before anything is written there again
  }

  DDSM_DEVICE void store_gates() const {
#pragma unroll
    for (int i = 0; i < kGates; ++i) {
      const int item = thread + i * ptx::kWarpgroup;
      if (item >= Tile::kHalves * Tile::kColumns) continue;
      ptx::store_shared(
          Tile::gate_address(warpgroup, item / Tile::kColumns, item % Tile::kColumns),
          p.conv.epilogue.gate ? to_float(gates[i]) : 1.0f);
    }
  }

  // See conv2d_epilogue.cuh; the sums stay where they are, in each thread's order.
  DDSM_DEVICE bool add_splits(Tile& tile, const TileWork& work) {
    using Two = Pack<float, 2>;
    constexpr int kTwos = Tile::kN / 4, kAll = Tile::kM * Tile::kN / 2;
    const ConvParams& conv = p.conv;
    Two* partial = reinterpret_cast<Two*>(conv.partial) +
                   int64_t(work.tile) * conv.splits * kAll + ptx::hidden(thread);
    // Of a warp's 16 rows none may be left.
    const auto exists = [&](int half) {
      return work.m0 + half * 64 + thread / 32 * 16 < conv.m;
    };
    Two* const own = partial + int64_t(work.split) * kAll;
#pragma unroll
    for (int half = 0; half < Tile::kHalves; ++half) {
      if (!exists(half)) continue;
#pragma unroll
      for (int i = 0; i < kTwos; ++i) {
        ptx::store_global(own + (half * kTwos + i) * ptx::kWarpgroup,
                          Two{tile.sums[half][2 * i], tile.sums[half][2 * i + 1]});
      }
    }
    const uint32_t ticket = Tile::kTickets + warpgroup * 4;
    sync();
    if (copies()) {
      const unsigned last = static_cast<unsigned>(conv.splits) - 1;
      ptx::store_shared(ticket, ptx::take_ticket(conv.tickets + work.tile, last));
    }
    sync();
    if (ptx::load_shared<unsigned>(ticket) + 1 < static_cast<unsigned>(conv.splits)) return false;
#pragma unroll
    for (auto& half : tile.sums) {
#pragma unroll
      for (float& sum : half) sum = 0;
    }
#pragma unroll 1
    for (int32_t split = 0; split < conv.splits; ++split, partial += kAll) {
#pragma unroll
      for (int half = 0; half < Tile::kHalves; ++half) {
        if (!exists(half)) continue;
#pragma unroll
        for (int i = 0; i < kTwos; ++i) {
          // So many loads before the first of their sums: registers are short.
          if (i % 16 == 0) ptx::keep_order();
          const Two of_split =
              ptx::load_of_blocks(partial + (half * kTwos + i) * ptx::kWarpgroup);
          tile.sums[half][2 * i] += of_split.lane[0];
          tile.sums[half][2 * i + 1] += of_split.lane[1];
        }
      }
    }
    return true;
  }

  // What a pair of y's columns is made of beside the sums.
  struct PairTerms {
    Pack<float, 2> sum, gate_half, gate;  // the last two: where there is an activation or a gate
  };
  DDSM_DEVICE PairTerms terms_of_pair(uint32_t terms_begin, int half, int column) const {
    const auto load = [&](int place) {
      return ptx::load_shared<Pack<float, 2>>(terms_begin + place * 4);
    };
    PairTerms pair{load(half * Tile::kN + column), {}, {}};
    if constexpr (kGeglu) pair.gate_half = load(half * Tile::kN + Tile::kColumns + column);
    if constexpr (kActivated) {
      pair.gate = load(Tile::kHalves * Tile::kN + half * Tile::kColumns + column);
    }
    return pair;
  }
  // A pair of outputs from the sums at `at` on, before residual and gain.
  DDSM_DEVICE Pack<float, 2> outputs(const Tile& tile, int half, int at,
                                     const PairTerms& pair) const {
    float value[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      value[j] = tile.sums[half][at + j] + pair.sum.lane[j];
      if constexpr (kGeglu) {
        constexpr int kGateHalf = Tile::kN / 4;  // sums from a column to its gate half
        value[j] *= gelu(tile.sums[half][at + kGateHalf + j] + pair.gate_half.lane[j]);
      }
    }
    if constexpr (kActivated && !kGeglu) activate(p.conv.epilogue.activation, value);
    if constexpr (kActivated) {
#pragma unroll
      for (int j = 0; j < 2; ++j) value[j] *= pair.gate.lane[j];
    }
    return {value[0], value[1]};
  }

  // The sums with all terms, times gain, rounded, over the residual's place.
  DDSM_DEVICE void round(const Tile& tile) const {
    const bool adds = p.copies_residual || adds_rows();
    const float gain = p.conv.epilogue.gain;
    // Hidden, as else the addresses of all outputs would be kept through the products.
    const int own = ptx::hidden(thread), lane = own % 32;
    // Of the thread's first row. All its others lie whole repeats of the permutation further.
    constexpr int kChunks = Tile::kOutColumns / 8;
    uint32_t first_row[kChunks];
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      first_row[chunk] =
          Tile::out_address(warpgroup, own / 32 * 16 + lane / 4, chunk * 8 + lane % 4 * 2);
    }
    const uint32_t terms_begin = Tile::term_address(warpgroup, 0, lane % 4 * 2);
    // So many chunks' terms and residuals are loaded before the first of their sums is stored.
    constexpr int kTogether = 4;
#pragma unroll
    for (int half = 0; half < Tile::kHalves; ++half) {
#pragma unroll
      for (int begin = 0; begin < Tile::kColumns / 8; begin += kTogether) {
        PairTerms term[kTogether];
        Pack<T, 2> residual[kTogether][2];
        const auto address = [&](int i, int rows) {
          const int chunk = begin + i;
          return first_row[chunk % kChunks] + (half * 64 + rows * 8) * Tile::kOutRowBytes +
                 chunk / kChunks * Tile::kOutBoxBytes;
        };
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          term[i] = terms_of_pair(terms_begin, half, (begin + i) * 8);
#pragma unroll
          for (int rows = 0; rows < 2; ++rows) {
            residual[i][rows] = {};
            if (adds) residual[i][rows] = ptx::load_shared<Pack<T, 2>>(address(i, rows));
          }
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
#pragma unroll
          for (int rows = 0; rows < 2; ++rows) {
            const int at = (begin + i) * 4 + rows * 2;
            const auto value = outputs(tile, half, at, term[i]);
            const float first = value.lane[0] + to_float(residual[i][rows].lane[0]);
            const float second = value.lane[1] + to_float(residual[i][rows].lane[1]);
            ptx::store_shared(address(i, rows), pair_of(first * gain, second * gain, T{}));
          }
        }
      }
    }
  }

  // For each chunk of the warpgroup's outputs that is the thread's: calls visit(row, its pixel m,
  // column, how many columns of the part lie there), the last one below 1 where m is none either.
  template <int V, class Visit>
  DDSM_DEVICE void for_chunks(const TileWork& work, const Visit& visit) const {
    constexpr int kPerRow = Tile::kColumns / V;
    const int column = thread % kPerRow * V;
    const int32_t left = columns_left(work) - column;
    for (int row = thread / kPerRow; row < Tile::kM; row += ptx::kWarpgroup / kPerRow) {
      const int32_t m = work.m0 + row;
      visit(row, m, column, m < p.conv.m ? left : 0);
    }
  }

  DDSM_DEVICE void fill_rows(const TileWork& work) const {
    const EpilogueParams& e = p.conv.epilogue;
    for_chunks<kChunk>(work, [&](int row, int32_t m, int column, int32_t left) {
      const int32_t from = left > 0 ? m : 0;
      const int64_t offset = e.residual ? pixel(work, from) * e.residual_stride
                                        : p.conv.rows.at(from).image * e.shift_stride;
      const T* source = static_cast<const T*>(e.residual ? e.residual : e.shift) + offset;
      const bool vector = e.residual && e.vector;
      ptx::store_shared(Tile::out_address(warpgroup, row, column),
                        load_pack<T, kChunk>(source + first_column(work) + column, left, vector));
    });
  }

  // Row m's pixel, counted over all images of y.
  DDSM_DEVICE int64_t pixel(const TileWork& work, int32_t m) const {
    if (p.phases == 1) return m;
    const EpilogueParams& e = p.conv.epilogue;
    const PixelClass pixels{2, work.phase / 2, work.phase % 2, e.pixel_class.width};
    const auto at = p.conv.rows.at(m);
    return at.image * e.pixels + pixels.place(at.h, at.w);
  }

  DDSM_DEVICE void copy_y(const TileWork& work) const {
#pragma unroll
    for (int column = 0; column < Tile::kColumns; column += Tile::kOutColumns) {
      if (column >= columns_left(work)) break;
      ptx::copy_out(p.y, Tile::out_address(warpgroup, 0, column),
                    {first_column(work) + column, work.m0, 0, 0});
    }
    ptx::copy_out_commit();
  }

  DDSM_DEVICE void store_y(const TileWork& work) const {
    for_chunks<kChunk>(work, [&](int row, int32_t m, int column, int32_t left) {
      if (left <= 0) return;
      const auto pack =
          ptx::load_shared<Pack<T, kChunk>>(Tile::out_address(warpgroup, row, column));
      T* y = static_cast<T*>(p.conv.epilogue.y) + pixel(work, m) * p.conv.epilogue.y_stride;
      store_pack(y + first_column(work) + column, pack, left, p.conv.epilogue.vector);
    });
  }

  // Of a half's 64 rows a pair of columns is the work of kLanes lanes, which add up in one order.
  static constexpr int kPairs = Tile::kColumns / 4, kLanes = 32 / kPairs;  // pairs: of a warp

  // The i-th of a lane's rows: in 8 rows those that the lanes read at a time meet different banks.
  static DDSM_DEVICE int row_of(int lane, int i) {
    constexpr int kPer = 8 / kLanes;  // rows of 8 that are the lane's
    const int in_eight = kLanes == 4 ? i % kPer * 2 + lane % 2 + lane / 2 * 4
                                     : i % kPer + lane * kPer;
    return i / kPer * 8 + in_eight;
  }

  DDSM_DEVICE void store_moments(const TileWork& work) const {
    const int warp = thread / 32, first = warp / 2 * 64;
    if (first >= Tile::kM) return;
    const int column = (warp % 2 * kPairs + thread % kPairs) * 2;
    const int32_t left = p.conv.m - (work.m0 + first);
    const int end = first + (left < 64 ? left : 64);
    const auto pixels = static_cast<int64_t>(p.conv.rows.pixels.divisor);
    for (int row = first; row < end;) {
      const int32_t m = work.m0 + row;
      const int64_t image = p.conv.rows.at(m).image, rest = (image + 1) * pixels - m;
      const int stop = rest < end - row ? row + static_cast<int>(rest) : end;
      const int64_t block = m / kMomentPixels - image * pixels / kMomentPixels;
      const int64_t place = (image * p.phases + work.phase) * moment_blocks(pixels) + block;
      store_moments_of(work, column, row, stop, place);
      row = stop;
    }
  }

  // Of rows [row, stop), which are one image's.
  DDSM_DEVICE void store_moments_of(const TileWork& work, int column, int row, int stop,
                                    int64_t place) const {
    const int lane = thread % 32 / kPairs;
    const auto load = [&](int at) {
      const auto pair = ptx::load_shared<Pack<T, 2>>(Tile::out_address(warpgroup, at, column));
      return Pack<float, 2>{to_float(pair.lane[0]), to_float(pair.lane[1])};
    };
    // Deviations from the first value: data, so the squares cannot cancel badly.
    const auto shift = load(row);
    float sum[2] = {}, square[2] = {};
    const auto add = [&](const Pack<T, 2>& pair) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float d = to_float(pair.lane[j]) - shift.lane[j];
        sum[j] += d;
        square[j] += d * d;
      }
    };
    if (stop - row == kMomentPixels) {
      // The usual case: no load waits for another. All rows lie whole repeats of the permutation
      // from a lane's first ones.
      constexpr int kPer = 8 / kLanes;
      uint32_t first[kPer];
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        first[i] = Tile::out_address(warpgroup, row + row_of(lane, i), column);
      }
#pragma unroll
      for (int i = 0; i < kMomentPixels / kLanes; ++i) {
        add(ptx::load_shared<Pack<T, 2>>(first[i % kPer] + i / kPer * 8 * Tile::kOutRowBytes));
      }
    } else {
#pragma unroll 1
      for (int i = 0, at; (at = row + row_of(lane, i)) < stop; ++i) {
        add(ptx::load_shared<Pack<T, 2>>(Tile::out_address(warpgroup, at, column)));
      }
    }
    const float count = static_cast<float>(stop - row);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int distance = kPairs; distance < 32; distance *= 2) {
        const int other = thread % 32 ^ distance;
        sum[j] += ptx::shuffle(sum[j], other);
        square[j] += ptx::shuffle(square[j], other);
      }
      if (lane != 0 || column + j >= columns_left(work)) continue;
      const float delta = sum[j] / count, m2 = square[j] - sum[j] * delta;
      const int64_t n = first_column(work) + column + j;
      ptx::store_global(p.conv.epilogue.moments + place * p.conv.n + n,
                        Moments{shift.lane[j] + delta, m2 > 0 ? m2 : 0.0f});
    }
  }
};

}  // namespace ddsm
