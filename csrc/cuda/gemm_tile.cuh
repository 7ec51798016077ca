// A block's matrix product in shared memory: operand tiles, fragments and accumulators.
#pragma once

#include "index_maps.h"
#include "ptx.cuh"
#include "tile_choice.h"

namespace ddsm {

// Products of tiles of T: on tensor cores, for float as tf32.
template <class T>
struct TensorCores {
  using Element = T;
  static constexpr bool kIeee = false;
};
// Products of float in full precision, on the FMA units.
struct FmaUnits {
  using Element = float;
  static constexpr bool kIeee = true;
};

// Which index of an operand has adjacent elements: K, or M (of A) and N (of B).
enum class Major { kK, kMN };

// One operand's share of a step: kExtent rows of M or N by kStepBytes of K.
template <class T, int kExtent, Major kMajor>
struct OperandTile {
  static constexpr int kVector = 16 / sizeof(T);             // elements of a chunk
  static constexpr int kStep = kStepBytes / sizeof(T);       // elements of K
  static constexpr bool kAlongK = kMajor == Major::kK;
  static constexpr int kLines = kAlongK ? kExtent : kStep;
  static constexpr int kChunks = (kAlongK ? kStep : kExtent) / kVector;  // of a line
  static constexpr int kBytes = kLines * kChunks * 16;
  static constexpr bool kWords = !kAlongK && sizeof(T) == 4;  // ldmatrix cannot transpose these

  static DDSM_DEVICE uint32_t chunk_address(int line, int chunk) {
    return 16u * static_cast<uint32_t>(kWords ? swizzled_for_words(line, chunk, kChunks)
                                              : swizzled_for_ldmatrix(line, chunk, kChunks));
  }
  static DDSM_DEVICE uint32_t element_address(int mn, int k) {
    const int line = kAlongK ? mn : k, along = kAlongK ? k : mn;
    return chunk_address(line, along / kVector) + along % kVector * sizeof(T);
  }

  // The four 8-row by 16-byte matrices that `ldmatrix` gives for rows first and first + 8 and for
  // the halves of the 32 bytes of K at `half_step`; kRowsFirst: rows change faster than halves.
  template <bool kRowsFirst>
  static DDSM_DEVICE void fragments(uint32_t (&f)[4], uint32_t base, int first, int half_step) {
    const int lane = ptx::thread_index() % 32, matrix = lane / 8;
    const int rows = kRowsFirst ? matrix % 2 : matrix / 2;
    const int half = kRowsFirst ? matrix / 2 : matrix % 2;
    if constexpr (kAlongK) {
      const int row = first + rows * 8 + lane % 8;
      ptx::ldmatrix(f, base + chunk_address(row, half_step * 2 + half));
    } else if constexpr (!kWords) {
      const int line = half_step * 16 + half * 8 + lane % 8;
      ptx::ldmatrix_trans(f, base + chunk_address(line, first / kVector + rows));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int word_rows = kRowsFirst ? i % 2 : i / 2, word_half = kRowsFirst ? i / 2 : i % 2;
        const int mn = first + word_rows * 8 + lane / 4;
        const int k = half_step * 8 + word_half * 4 + lane % 4;
        f[i] = ptx::load_shared<uint32_t>(base + element_address(mn, k));
      }
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f[i] = ptx::to_tf32(f[i]);
    }
  }

  // Four elements along K of row `mn`, from k on.
  static DDSM_DEVICE Pack<float, 4> four(uint32_t base, int mn, int k) {
    if constexpr (kAlongK) {
      return ptx::load_shared<Pack<float, 4>>(base + element_address(mn, k));
    } else {
      Pack<float, 4> result;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        result.lane[i] = ptx::load_shared<float>(base + element_address(mn, k + i));
      }
      return result;
    }
  }
};

// Threads, warps and accumulators of a block that computes kM x kN outputs.
template <int kTile, class MathKind, Major kMajorA, Major kMajorB>
struct BlockTile {
  using Element = typename MathKind::Element;
  static constexpr int kM = kTiles[kTile].m, kN = kTiles[kTile].n;
  static constexpr int kWarpsM = kTiles[kTile].warps_m, kWarpsN = kTiles[kTile].warps_n;
  static constexpr int kThreads = kWarpsM * kWarpsN * 32;
  // Blocks that a multiprocessor should hold: caps the registers of a thread. Products on FMA units
  // and tiles that lie across K need more of them: with fewer blocks nothing spills.
  static constexpr int kFewer = MathKind::kIeee ? 2 : kMajorB == Major::kMN ? 1 : 0;
  static constexpr int kResident = kTiles[kTile].resident - kFewer;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  using A = OperandTile<Element, kM, kMajorA>;
  using B = OperandTile<Element, kN, kMajorB>;
  static constexpr int kStageBytes = A::kBytes + B::kBytes;
  // The outputs as float, lines padded so that a warp's fragment stores meet different banks.
  static constexpr int kOutPitch = kN + 8;
  static constexpr int kOutBytes = kM * kOutPitch * 4;
  static constexpr int kTicket = kOutBytes;  // behind the outputs
  static constexpr int kSharedBytes =
      kStages * kStageBytes > kOutBytes + 16 ? kStages * kStageBytes : kOutBytes + 16;

  // Element i of tile (mt, nt) is output row mt * 16 + lane / 4 + i / 2 * 8 of the warp, column
  // nt * 8 + lane % 4 * 2 + i % 2, as mma.sync has it.
  float sums[kWarpM / 16][kWarpN / 8][4];

  static DDSM_DEVICE void sync() { ptx::sync_threads(); }  // of the threads above
  static DDSM_DEVICE int warp() { return static_cast<int>(ptx::thread_index() / 32); }
  static DDSM_DEVICE int warp_m() { return warp() / kWarpsN * kWarpM; }
  static DDSM_DEVICE int warp_n() { return warp() % kWarpsN * kWarpN; }

  DDSM_DEVICE void clear() {
#pragma unroll
    for (auto& row : sums) {
#pragma unroll
      for (auto& tile : row) {
#pragma unroll
        for (float& sum : tile) sum = 0;
      }
    }
  }

  // sums += A B over the step whose tiles lie at `stage`.
  DDSM_DEVICE void multiply(uint32_t stage) {
    multiply_on(stage, MathKind{});
  }

  template <class T>
  DDSM_DEVICE void multiply_on(uint32_t stage, TensorCores<T>) {
#pragma unroll
    for (int half_step = 0; half_step < 2; ++half_step) {
      uint32_t a[kWarpM / 16][4], b[kWarpN / 16][4];
#pragma unroll
      for (int mt = 0; mt < kWarpM / 16; ++mt) {
        A::template fragments<true>(a[mt], stage, warp_m() + mt * 16, half_step);
      }
#pragma unroll
      for (int nt = 0; nt < kWarpN / 16; ++nt) {
        B::template fragments<false>(b[nt], stage + A::kBytes, warp_n() + nt * 16, half_step);
      }
#pragma unroll
      for (int mt = 0; mt < kWarpM / 16; ++mt) {
#pragma unroll
        for (int nt = 0; nt < kWarpN / 8; ++nt) {
          ptx::mma(sums[mt][nt], a[mt], b[nt / 2][nt % 2 * 2], b[nt / 2][nt % 2 * 2 + 1], T{});
        }
      }
    }
  }

  DDSM_DEVICE void multiply_on(uint32_t stage, FmaUnits) {
    const int lane = ptx::thread_index() % 32;
#pragma unroll
    for (int k = 0; k < A::kStep; k += 4) {
      Pack<float, 4> a[kWarpM / 8], b[kWarpN / 4];
#pragma unroll
      for (int i = 0; i < kWarpM / 8; ++i) {
        a[i] = A::four(stage, warp_m() + i * 8 + lane / 4, k);
      }
#pragma unroll
      for (int i = 0; i < kWarpN / 4; ++i) {
        const int n = warp_n() + i / 2 * 8 + lane % 4 * 2 + i % 2;
        b[i] = B::four(stage + A::kBytes, n, k);
      }
#pragma unroll
      for (int mt = 0; mt < kWarpM / 16; ++mt) {
#pragma unroll
        for (int nt = 0; nt < kWarpN / 8; ++nt) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              sums[mt][nt][i] += a[mt * 2 + i / 2].lane[j] * b[nt * 2 + i % 2].lane[j];
            }
          }
        }
      }
    }
  }

  static DDSM_DEVICE uint32_t out_address(int row, int column) {
    return static_cast<uint32_t>(row * kOutPitch + column) * 4;
  }

  // Puts the outputs into shared memory; the operand tiles there must be done with.
  DDSM_DEVICE void store_sums() const {
    const int lane = ptx::thread_index() % 32;
#pragma unroll
    for (int mt = 0; mt < kWarpM / 16; ++mt) {
#pragma unroll
      for (int nt = 0; nt < kWarpN / 8; ++nt) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = warp_m() + mt * 16 + lane / 4 + half * 8;
          const int column = warp_n() + nt * 8 + lane % 4 * 2;
          const Pack<float, 2> pair{sums[mt][nt][half * 2], sums[mt][nt][half * 2 + 1]};
          ptx::store_shared(out_address(row, column), pair);
        }
      }
    }
  }
};

// Runs steps [first, last): `loader.load(stage address, step)` starts the copies of one step, is
// called once for every step in order, and may leave them to cp.async. Shared memory is free after.
template <class Tile, class Loader>
DDSM_DEVICE void run_pipeline(Tile& tile, Loader& loader, int first, int last) {
  tile.clear();
  int next = first;
#pragma unroll 1
  for (int i = 0; i < kStages - 1; ++i, ++next) {
    if (next < last) loader.load(i * Tile::kStageBytes, next);
    ptx::cp_async_commit();
  }
  int reading = 0, writing = kStages - 1;
#pragma unroll 1
  for (int step = first; step < last; ++step, ++next) {
    ptx::cp_async_wait<kStages - 2>();
    ptx::sync_threads();  // all copies of this step are seen, all reads of the last one are done
    if (next < last) loader.load(writing * Tile::kStageBytes, next);
    ptx::cp_async_commit();
    tile.multiply(reading * Tile::kStageBytes);
    reading = reading + 1 == kStages ? 0 : reading + 1;
    writing = writing + 1 == kStages ? 0 : writing + 1;
  }
  ptx::cp_async_wait<0>();
  ptx::sync_threads();
}

}  // namespace ddsm
