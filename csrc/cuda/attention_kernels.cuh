// The attention kernel: attention_params.h says what each pass computes. A block computes some
// rows of one head; its warps have 16 or 32 rows each, and walk together over the columns.
//
// Two buffers take the columns' operands in turn, each filled while the other is multiplied:
//   first buffer     columns0                     rows0 x columns0^T
//   second buffer    columns1      weights, out += weights x columns1   (and rows1 x columns1^T)
#pragma once

#include <cmath>

#include "attention_products.cuh"
#include "chunk_loads.cuh"
#include "launch.cuh"

namespace ddsm {

template <class T, AttentionPass kPass, int kRowTiles, int kSlabs, bool kGeneral>
struct AttentionBlock {
  static constexpr bool kForward = kPass == AttentionPass::kForward;
  static constexpr bool kTwoProducts = kPass == AttentionPass::kGradScores;
  static constexpr int kThreads = kAttentionWarps * 32;
  static constexpr int kRows = kAttentionWarps * 16 * kRowTiles;
  // 64 where a thread's sums (outputs and scores) then leave registers for the rest; fewer make
  // each barrier dearer. Unrolled products on FMA units are long enough with 32.
  static constexpr int kFeatures = kSlabs * kSlabBytes / static_cast<int>(sizeof(T));
  static constexpr int sums(int columns) {
    return kRowTiles * (kFeatures + columns * (kTwoProducts ? 2 : 1)) / 2;
  }
  static constexpr int kColumns = sizeof(T) == 2 && sums(64) < (kForward ? 192 : 128) ? 64 : 32;
  using Products = WarpProducts<T, kRowTiles, kRows, kColumns, kSlabs>;
  using RowTile = typename Products::RowTile;
  using ColumnTile = typename Products::ColumnTile;
  using Scores = typename Products::Scores;

  // Shared memory.
  static constexpr uint32_t kRows0 = 0, kRows1 = kTwoProducts ? RowTile::kBytes : kRows0;
  static constexpr uint32_t kFirst = kRows1 + RowTile::kBytes;
  static constexpr uint32_t kSecond = kFirst + ColumnTile::kBytes;
  static constexpr uint32_t kStatistics = kSecond + ColumnTile::kBytes;
  static constexpr int kStatisticsCount = kRows > kColumns ? kRows : kColumns;
  static constexpr int kSharedBytes = kStatistics + (kForward ? 0 : kStatisticsCount * 8);
  static_assert(kSharedBytes <= 99 * 1024);  // what sm_86 gives to a block

  // Blocks that a multiprocessor should hold: caps the registers of a thread at 128, 168 or 255.
  // Beside the sums: operands and addresses, of which products on FMA units hold more (no spills).
  static constexpr int kRegisters = sums(kColumns) + (sizeof(T) == 4 ? 128 : 80);
  static constexpr int kResident = kRegisters <= 128 ? 4 : kRegisters <= 168 ? 3 : 2;

  const AttentionParams& p;
  int64_t n, head;
  int32_t first_row, first_feature;
  typename Products::Outputs out;
  // Forward, of rows lane / 4 + 8 * half of a row tile: the largest exponent (of 2) so far, and
  // the thread's part of the sum of powers.
  float top[kRowTiles][2], sum[kRowTiles][2];

  DDSM_DEVICE explicit AttentionBlock(const AttentionParams& params) : p(params) {
    const int32_t index = ptx::block_index();
    const int32_t of_rows = index / p.feature_blocks;
    const int32_t of_heads = of_rows / p.row_blocks;
    first_feature = index % p.feature_blocks * kFeatures;
    first_row = of_rows % p.row_blocks * kRows;
    n = of_heads / p.heads;
    head = of_heads % p.heads;
#pragma unroll
    for (int rt = 0; rt < kRowTiles; ++rt) {
      top[rt][0] = top[rt][1] = -INFINITY;
      sum[rt][0] = sum[rt][1] = 0;
#pragma unroll
      for (auto& tile : out[rt]) tile[0] = tile[1] = tile[2] = tile[3] = 0;
    }
  }

  static DDSM_DEVICE int thread() { return static_cast<int>(ptx::thread_index()); }
  static DDSM_DEVICE int lane() { return thread() % 32; }
  // Of the thread's scores: row in the block, column in the tile of columns.
  static DDSM_DEVICE int row_of(int rt, int half) {
    return Products::first_row() + rt * 16 + half * 8 + lane() / 4;
  }
  static DDSM_DEVICE int column_of(int tile, int i) { return tile * 8 + lane() % 4 * 2 + i; }

  DDSM_DEVICE T* head_of(const AttentionView& view) const {
    return static_cast<T*>(view.data) + n * view.n_stride + head * view.head_stride;
  }

  // Starts the copy of a tile: lines past `lines` and features past d are zero. A thread has one
  // chunk of every 16th line in every slab, so that all addresses are few sums apart.
  template <class Tile>
  DDSM_DEVICE void load(uint32_t base, const AttentionView& view, int32_t first, int32_t lines,
                        int32_t feature0) const {
    constexpr int kLineStep = kThreads / Tile::kChunks;
    static_assert(Tile::kLines % kLineStep == 0 && kLineStep % 8 == 0);  // 8: the swizzle repeats
    const int line = thread() / Tile::kChunks, chunk = thread() % Tile::kChunks;
    const int32_t feature = feature0 + chunk * Tile::kVector;
    const T* source = head_of(view) + (first + line) * view.t_stride + feature;
    int32_t left[kSlabs];
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      const int32_t features = p.d - feature - slab * Tile::kSlabFeatures;
      left[slab] = features < 0 ? 0 : features < Tile::kVector ? features : Tile::kVector;
    }
#pragma unroll 4
    for (int i = 0; i < Tile::kLines / kLineStep; ++i, source += kLineStep * view.t_stride) {
      const bool inside = first + line + i * kLineStep < lines;
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab) {
        const uint32_t address = base + Tile::chunk_address(line, chunk, slab);
        load_chunk(address + i * kLineStep * kSlabBytes, source + slab * Tile::kSlabFeatures,
                   inside ? left[slab] : 0, view.vector);
      }
    }
  }

  // `count` elements of a chunk, the rest zero; cp.async touches no byte of what it leaves out.
  static DDSM_DEVICE void load_chunk(uint32_t address, const T* source, int count, bool vector) {
    if (!kGeneral || vector) {
      ptx::cp_async(address, source, count * static_cast<int>(sizeof(T)));
    } else {
      load_elements<T, T>(address, source, 0, 1, count);
    }
  }

  // Puts {log2 of the sum of powers, delta} of the queries into shared memory, one a thread.
  DDSM_DEVICE void load_statistics(bool of_rows, int32_t first) const {
    if (kForward || of_rows != p.queries_are_rows) return;
    const int32_t count = of_rows ? kRows : kColumns, queries = of_rows ? p.rows : p.columns;
    if (thread() >= count) return;
    Pack<float, 2> of_query{};
    if (first + thread() < queries) {
      const int64_t index = (n * p.heads + head) * queries + first + thread();
      of_query.lane[0] = ptx::load_global(p.lse + index) * kLog2E;
      if (kTwoProducts) of_query.lane[1] = ptx::load_global(p.delta + index);
    }
    ptx::store_shared(kStatistics + thread() * 8, of_query);
  }

  static DDSM_DEVICE void clear(Scores& scores) {
#pragma unroll
    for (auto& row : scores) {
#pragma unroll
      for (auto& tile : row) tile[0] = tile[1] = tile[2] = tile[3] = 0;
    }
  }

  // Gives `value` to what lies past the last column.
  DDSM_DEVICE void mask(Scores& scores, int32_t first_column, float value) const {
    if (first_column + kColumns <= p.columns) return;
#pragma unroll
    for (auto& row : scores) {
#pragma unroll
      for (int tile = 0; tile < kColumns / 8; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (first_column + column_of(tile, i % 2) >= p.columns) row[tile][i] = value;
        }
      }
    }
  }

  // Scores -> powers, with what is summed so far brought to the new largest exponent.
  DDSM_DEVICE void soften(Scores& scores, int32_t first_column) {
    if (p.score_scale < 0) negate(scores);  // the largest score shall have the largest exponent
    mask(scores, first_column, -INFINITY);
#pragma unroll
    for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
      for (int half = 0; half < 2; ++half) soften_row(scores[rt], rt, half);
    }
  }

  static DDSM_DEVICE void negate(Scores& scores) {
#pragma unroll
    for (auto& row : scores) {
#pragma unroll
      for (auto& tile : row) {
#pragma unroll
        for (float& score : tile) score = -score;
      }
    }
  }

  DDSM_DEVICE void soften_row(float (&scores)[kColumns / 8][4], int rt, int half) {
    const float scale = fabsf(p.score_scale);
    float most = -INFINITY;
#pragma unroll
    for (auto& tile : scores) most = fmaxf(most, fmaxf(tile[half * 2], tile[half * 2 + 1]));
    most = fmaxf(most, ptx::shuffle(most, lane() ^ 1));
    most = fmaxf(most, ptx::shuffle(most, lane() ^ 2));
    most = fmaxf(top[rt][half], most * scale);
    const float shift = shift_of(most), rescale = ptx::exp2(top[rt][half] - shift);
    top[rt][half] = most;
    float total = sum[rt][half] * rescale;
#pragma unroll
    for (auto& tile : scores) {
#pragma unroll
      for (int i = half * 2; i < half * 2 + 2; ++i) {
        tile[i] = ptx::exp2(fmaf(tile[i], scale, -shift));
        total += tile[i];
      }
    }
    sum[rt][half] = total;
#pragma unroll
    for (auto& tile : out[rt]) {
      tile[half * 2] *= rescale;
      tile[half * 2 + 1] *= rescale;
    }
  }

  // A row whose scores are all -inf so far has no finite exponent to subtract.
  static DDSM_DEVICE float shift_of(float most) { return most == -INFINITY ? 0.0f : most; }

  // Scores -> P, or with dP -> dS.
  DDSM_DEVICE void differentiate(Scores& scores, const Scores& grads, int32_t first_column) const {
    const bool by_rows = p.queries_are_rows;
    const uint32_t statistics = kStatistics + 8 * (by_rows ? row_of(0, 0) : column_of(0, 0));
#pragma unroll
    for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
      for (int tile = 0; tile < kColumns / 8; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int from_first = by_rows ? rt * 16 + i / 2 * 8 : tile * 8 + i % 2;
          const auto of_query = ptx::load_shared<Pack<float, 2>>(statistics + 8 * from_first);
          const float power = fmaf(scores[rt][tile][i], p.score_scale, -of_query.lane[0]);
          scores[rt][tile][i] = ptx::exp2(power);
          if (kTwoProducts) scores[rt][tile][i] *= grads[rt][tile][i] - of_query.lane[1];
        }
      }
    }
    mask(scores, first_column, 0);
  }

  // From the scores of a tile of columns (and dP) on.
  DDSM_DEVICE void use(Scores& scores, const Scores& grads, int32_t first_column) {
    if constexpr (kForward) soften(scores, first_column);
    else differentiate(scores, grads, first_column);
    Products::accumulate(out, scores, kSecond);
  }

  DDSM_DEVICE void run() {
    if (p.columns == 0) return;  // no queries: the gradients of keys and values are zero
    load_statistics(true, first_row);
    if constexpr (kGeneral) run_grouped();
    else run_whole();
    ptx::cp_async_wait<0>();
  }

  // All features of a tile fit its buffer.
  DDSM_DEVICE void run_whole() {
    load<RowTile>(kRows0, p.rows0, first_row, p.rows, 0);
    if (kTwoProducts) load<RowTile>(kRows1, p.rows1, first_row, p.rows, 0);
    load<ColumnTile>(kFirst, p.columns0, 0, p.columns, 0);
    ptx::cp_async_commit();
#pragma unroll 1
    for (int32_t column = 0; column < p.columns; column += kColumns) {
      Scores first, second;
      ptx::cp_async_wait<0>();
      ptx::sync_threads();  // the first buffer is filled, the second one is done with
      load<ColumnTile>(kSecond, p.columns1, column, p.columns, 0);
      ptx::cp_async_commit();
      load_statistics(false, column);
      clear(first);
      Products::multiply(first, kRows0, kFirst);
      ptx::cp_async_wait<0>();
      ptx::sync_threads();  // and the other way round
      if (column + kColumns < p.columns) {
        load<ColumnTile>(kFirst, p.columns0, column + kColumns, p.columns, 0);
      }
      ptx::cp_async_commit();
      if constexpr (kTwoProducts) {
        clear(second);
        Products::multiply(second, kRows1, kSecond);
        use(second, first, column);
      } else {
        use(first, first, column);
      }
    }
  }

  // Tiles come by groups of features, and the group that `out` needs once more.
  DDSM_DEVICE void run_grouped() {
#pragma unroll 1
    for (int32_t column = 0; column < p.columns; column += kColumns) {
      Scores first, second;
      clear(first);
      clear(second);
#pragma unroll 1
      for (int32_t feature = 0; feature < p.d; feature += kFeatures) {
        ptx::sync_threads();  // all buffers are done with
        load<RowTile>(kRows0, p.rows0, first_row, p.rows, feature);
        load<ColumnTile>(kFirst, p.columns0, column, p.columns, feature);
        if constexpr (kTwoProducts) {
          load<RowTile>(kRows1, p.rows1, first_row, p.rows, feature);
          load<ColumnTile>(kSecond, p.columns1, column, p.columns, feature);
        }
        land();
        Products::multiply(first, kRows0, kFirst);
        if constexpr (kTwoProducts) Products::multiply(second, kRows1, kSecond);
      }
      ptx::sync_threads();
      load_statistics(false, column);
      load<ColumnTile>(kSecond, p.columns1, column, p.columns, first_feature);
      land();
      if constexpr (kTwoProducts) use(second, first, column);
      else use(first, first, column);
    }
  }

  // Waits for all copies of all threads.
  static DDSM_DEVICE void land() {
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    ptx::sync_threads();
  }

  DDSM_DEVICE void finish() {
#pragma unroll
    for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scale = kForward ? normalise(rt, half) : p.out_scale;
#pragma unroll
        for (auto& tile : out[rt]) {
          tile[half * 2] *= scale;
          tile[half * 2 + 1] *= scale;
        }
      }
    }
    stage();
    ptx::sync_warp();
    store();
  }

  // 1 / the sum of powers of a row; stores its lse.
  DDSM_DEVICE float normalise(int rt, int half) const {
    float total = sum[rt][half];
    total += ptx::shuffle(total, lane() ^ 1);
    total += ptx::shuffle(total, lane() ^ 2);
    const int32_t row = first_row + row_of(rt, half);
    if (lane() % 4 == 0 && row < p.rows && first_feature == 0) {
      const float lse = shift_of(top[rt][half]) * kLn2 + logf(total);
      ptx::store_global(p.lse + (n * p.heads + head) * p.rows + row, lse);
    }
    return 1.0f / total;
  }

  // Puts the outputs where rows0 was, which every warp read before the last barrier, so that stores
  // to global memory are 16 bytes wide.
  DDSM_DEVICE void stage() const {
#pragma unroll
    for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
      for (int tile = 0; tile < Products::kFeatureTiles; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Pack<T, 2> pair;
          from_float(out[rt][tile][half * 2], &pair.lane[0]);
          from_float(out[rt][tile][half * 2 + 1], &pair.lane[1]);
          ptx::store_shared(kRows0 + RowTile::element_address(row_of(rt, half), column_of(tile, 0)),
                            pair);
        }
      }
    }
  }

  DDSM_DEVICE void store() const {
    T* data = head_of(p.out);
#pragma unroll 1
    for (int item = lane(); item < kRowTiles * 16 * RowTile::kLineChunks; item += 32) {
      const int line = Products::first_row() + item / RowTile::kLineChunks;
      const int chunk = item % RowTile::kLineChunks;
      const int32_t row = first_row + line, feature = first_feature + chunk * RowTile::kVector;
      if (row >= p.rows || feature >= p.d) continue;
      const auto pack = ptx::load_shared<Pack<T, RowTile::kVector>>(
          kRows0 + RowTile::chunk_address(line, chunk));
      T* target = data + row * p.out.t_stride + feature;
      if (p.out.vector && feature + RowTile::kVector <= p.d) {
        ptx::store_global(reinterpret_cast<Pack<T, RowTile::kVector>*>(target), pack);
        continue;
      }
#pragma unroll
      for (int i = 0; i < RowTile::kVector; ++i) {
        if (feature + i < p.d) ptx::store_global(target + i, pack.lane[i]);
      }
    }
  }

  static constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
};

template <class Block>
DDSM_KERNEL(Block::kThreads, Block::kResident)
attention_kernel(const AttentionParams p) {
  Block block(p);
  block.run();
  block.finish();
}

template <class T, AttentionPass kPass, int kRowTiles, int kSlabs, bool kGeneral>
const char* launch_attention_block(const AttentionParams& p, int64_t blocks, void* stream) {
  using Block = AttentionBlock<T, kPass, kRowTiles, kSlabs, kGeneral>;
  const LaunchShape shape{blocks, 1, Block::kThreads, Block::kSharedBytes};
  return launch("attention", attention_kernel<Block>, shape, stream, p);
}

template <class T, AttentionPass kPass>
const char* launch_attention_pass(const AttentionParams& p, const AttentionTile& tile,
                                  int64_t blocks, void* stream) {
  if (tile.general) {
    return tile.slabs == 2 ? launch_attention_block<T, kPass, 1, 2, true>(p, blocks, stream)
                           : launch_attention_block<T, kPass, 1, 4, true>(p, blocks, stream);
  }
  if constexpr (sizeof(T) == 2) {
    switch (tile.row_tiles * 10 + tile.slabs) {
      case 11:
        return launch_attention_block<T, kPass, 1, 1, false>(p, blocks, stream);
      case 12:
        return launch_attention_block<T, kPass, 1, 2, false>(p, blocks, stream);
      case 13:
        return launch_attention_block<T, kPass, 1, 3, false>(p, blocks, stream);
      case 14:
        return launch_attention_block<T, kPass, 1, 4, false>(p, blocks, stream);
      case 21:
        return launch_attention_block<T, kPass, 2, 1, false>(p, blocks, stream);
    }
    if constexpr (kPass == AttentionPass::kForward) {
      if (tile.row_tiles == 2 && tile.slabs == 2) {
        return launch_attention_block<T, kPass, 2, 2, false>(p, blocks, stream);
      }
    }
  }
  return "no attention kernel for this tile";
}

}  // namespace ddsm
