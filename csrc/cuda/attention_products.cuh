// Operand tiles of the attention kernels in shared memory, and a warp's products of them: on
// tensor cores for 16-bit types, on FMA units in full precision for float.
#pragma once

#include "attention_params.h"
#include "index_maps.h"
#include "ptx.cuh"

namespace ddsm {

// kLines rows of kSlabs * 128 bytes, slab by slab.
template <class T, int kLineCount, int kSlabs>
struct SlabTile {
  static constexpr int kLines = kLineCount;
  static constexpr int kVector = 16 / sizeof(T);            // elements of a chunk
  static constexpr int kChunks = kSlabBytes / 16;           // of a line of a slab
  static constexpr int kSlabFeatures = kChunks * kVector;
  static constexpr int kFeatures = kSlabs * kSlabFeatures;
  static constexpr int kLineChunks = kSlabs * kChunks;      // of a line of all slabs
  static constexpr int kBytes = kLines * kSlabs * kSlabBytes;

  static DDSM_DEVICE uint32_t chunk_address(int line, int chunk, int slab) {
    const int place = swizzled_for_ldmatrix(line, chunk, kChunks);
    return 16u * static_cast<uint32_t>(slab * kLines * kChunks + place);
  }
  // chunk: of a line of all slabs.
  static DDSM_DEVICE uint32_t chunk_address(int line, int chunk) {
    return chunk_address(line, chunk % kChunks, chunk / kChunks);
  }
  static DDSM_DEVICE uint32_t element_address(int line, int feature) {
    return chunk_address(line, feature / kVector) + feature % kVector * sizeof(T);
  }

  // Fragments of 16 lines from `first` on (a multiple of 8) by the 16 features of `step`, where
  // features are K; kLinesFirst: as operand A, else as two operands B of 8 lines.
  template <bool kLinesFirst>
  static DDSM_DEVICE void fragments(uint32_t (&f)[4], uint32_t base, int first, int step) {
    const int matrix = lane() / 8;
    const int lines = kLinesFirst ? matrix % 2 : matrix / 2;
    const int half = kLinesFirst ? matrix / 2 : matrix % 2;
    ptx::ldmatrix(f, base + address_of_lane(lines, half, first, step));
  }

  // Fragments of the same, where lines are K, as two operands B of 8 features.
  static DDSM_DEVICE void fragments_across(uint32_t (&f)[4], uint32_t base, int first, int step) {
    const int matrix = lane() / 8;
    ptx::ldmatrix_trans(f, base + address_of_lane(matrix % 2, matrix / 2, first, step));
  }

  // chunk_address(first + lines * 8 + lane % 8, step * 2 + half), in parts of which only one, an
  // exclusive or, mixes what a lane has for itself with what changes from step to step.
  static DDSM_DEVICE uint32_t address_of_lane(int lines, int half, int first, int step) {
    constexpr int kSteps = kChunks / 2;  // of a slab
    const int own = (lines * 8 + lane() % 8) * kSlabBytes + (half ^ lane() % 8) * 16;
    return static_cast<uint32_t>((own ^ step % kSteps * 32) +
                                 (step / kSteps * kLines + first) * kSlabBytes);
  }

  static DDSM_DEVICE int lane() { return static_cast<int>(ptx::thread_index() % 32); }

  static DDSM_DEVICE Pack<float, 4> four(uint32_t base, int line, int chunk) {
    return ptx::load_shared<Pack<float, 4>>(base + chunk_address(line, chunk));
  }
};

// Of both: element i of tile (row tile, n) is row lane / 4 + i / 2 * 8 of the row tile, column
// n * 8 + lane % 4 * 2 + i % 2, as mma.sync has it.
template <class T, int kRowTiles, int kRows, int kColumns, int kSlabs>
struct WarpProducts {
  using RowTile = SlabTile<T, kRows, kSlabs>;
  using ColumnTile = SlabTile<T, kColumns, kSlabs>;
  static constexpr bool kTensorCores = sizeof(T) == 2;
  static constexpr int kFeatureTiles = RowTile::kFeatures / 8;
  using Scores = float[kRowTiles][kColumns / 8][4];
  using Outputs = float[kRowTiles][kFeatureTiles][4];

  static DDSM_DEVICE int first_row() {
    return static_cast<int>(ptx::thread_index() / 32) * 16 * kRowTiles;
  }

  // scores += rows x columns^T over the features that the tiles hold.
  static DDSM_DEVICE void multiply(Scores& scores, uint32_t rows, uint32_t columns) {
    if constexpr (kTensorCores) multiply_on_tensor_cores(scores, rows, columns);
    else multiply_on_fma_units(scores, rows, columns);
  }
  // out += weights x columns.
  static DDSM_DEVICE void accumulate(Outputs& out, const Scores& weights, uint32_t columns) {
    if constexpr (kTensorCores) accumulate_on_tensor_cores(out, weights, columns);
    else accumulate_on_fma_units(out, weights, columns);
  }

 private:
  static DDSM_DEVICE void multiply_on_tensor_cores(Scores& scores, uint32_t rows,
                                                   uint32_t columns) {
    // Four steps are a slab: more of them unrolled would only be more code.
#pragma unroll 4
    for (int step = 0; step < RowTile::kFeatures / 16; ++step) {
      uint32_t a[kRowTiles][4], b[4];
#pragma unroll
      for (int rt = 0; rt < kRowTiles; ++rt) {
        RowTile::template fragments<true>(a[rt], rows, first_row() + rt * 16, step);
      }
#pragma unroll
      for (int n = 0; n < kColumns / 8; n += 2) {
        ColumnTile::template fragments<false>(b, columns, n * 8, step);
#pragma unroll
        for (int rt = 0; rt < kRowTiles; ++rt) {
          ptx::mma(scores[rt][n], a[rt], b[0], b[1], T{});
          ptx::mma(scores[rt][n + 1], a[rt], b[2], b[3], T{});
        }
      }
    }
  }

  static DDSM_DEVICE void accumulate_on_tensor_cores(Outputs& out, const Scores& weights,
                                                     uint32_t columns) {
#pragma unroll
    for (int k = 0; k < kColumns / 16; ++k) {
      // Sums of a product lie as operand A of the next one wants them.
      uint32_t a[kRowTiles][4], b[4];
#pragma unroll
      for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float(&pair)[4] = weights[rt][k * 2 + i / 2];
          a[rt][i] = pair_of(pair[i % 2 * 2], pair[i % 2 * 2 + 1], T{});
        }
      }
#pragma unroll
      for (int n = 0; n < kFeatureTiles; n += 2) {
        ColumnTile::fragments_across(b, columns, k * 16, n / 2);
#pragma unroll
        for (int rt = 0; rt < kRowTiles; ++rt) {
          ptx::mma(out[rt][n], a[rt], b[0], b[1], T{});
          ptx::mma(out[rt][n + 1], a[rt], b[2], b[3], T{});
        }
      }
    }
  }

  static DDSM_DEVICE void multiply_on_fma_units(Scores& scores, uint32_t rows, uint32_t columns) {
    const int lane = ptx::thread_index() % 32;
#pragma unroll 2
    for (int chunk = 0; chunk < RowTile::kLineChunks; ++chunk) {
      Pack<float, 4> a[kRowTiles * 2];
#pragma unroll
      for (int i = 0; i < kRowTiles * 2; ++i) {
        a[i] = RowTile::four(rows, first_row() + i * 8 + lane / 4, chunk);
      }
#pragma unroll
      for (int column = 0; column < kColumns / 4; ++column) {
        const int line = column / 2 * 8 + lane % 4 * 2 + column % 2;
        const Pack<float, 4> b = ColumnTile::four(columns, line, chunk);
#pragma unroll
        for (int i = 0; i < kRowTiles * 2; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            scores[i / 2][column / 2][i % 2 * 2 + column % 2] += a[i].lane[j] * b.lane[j];
          }
        }
      }
    }
  }

  static DDSM_DEVICE void accumulate_on_fma_units(Outputs& out, const Scores& weights,
                                                  uint32_t columns) {
    const int lane = ptx::thread_index() % 32;
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      // The lane of the same rows that has this column.
      const int owner = lane / 4 * 4 + column % 8 / 2;
      float weight[kRowTiles * 2];
#pragma unroll
      for (int i = 0; i < kRowTiles * 2; ++i) {
        weight[i] = ptx::shuffle(weights[i / 2][column / 8][i % 2 * 2 + column % 2], owner);
      }
#pragma unroll
      for (int n = 0; n < kFeatureTiles; ++n) {
        const auto pair = ptx::load_shared<Pack<float, 2>>(
            columns + ColumnTile::element_address(column, n * 8 + lane % 4 * 2));
#pragma unroll
        for (int i = 0; i < kRowTiles * 2; ++i) {
          out[i / 2][n][i % 2 * 2] += weight[i] * pair.lane[0];
          out[i / 2][n][i % 2 * 2 + 1] += weight[i] * pair.lane[1];
        }
      }
    }
  }
};

}  // namespace ddsm
