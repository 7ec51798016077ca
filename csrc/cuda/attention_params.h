// What the attention kernels are launched with: built by attention.cu, no CUDA header.
//
// Every kernel computes, for each row r of a score matrix, sums over its columns c:
//   out[r] = out_scale * sum over c of weight(r, c) * columns1[c],    scores = rows x columns^T
//
//   pass         rows     weight(r, c)                  columns1   scores
//   forward      queries  exp(s - log sum exp)          v          s = scale q k
//   grad value   keys     P = exp(s - lse of the query) grad_out   s
//   grad scores  queries  dS = P * (dP - delta)         k          s, dP = grad_out v
//   grad scores  keys     dS                            q          s, dP
//
// delta[query] = grad_out . out. The last two are one kernel whose operands change places.
#pragma once

#include <cstdint>

namespace ddsm {

enum class AttentionPass { kForward, kGradValue, kGradScores };

// A [n, heads, t, d] tensor whose d is adjacent; strides in elements.
struct AttentionView {
  void* data;
  int64_t n_stride, head_stride, t_stride;
  bool vector;  // every row starts at a multiple of 16 bytes
};

struct AttentionParams {
  AttentionView rows0, columns0;  // of the first product: s, or dP in the gradient of scores
  AttentionView rows1;            // of the second product, s in the gradient of scores
  AttentionView columns1;         // of that product, and what the weights multiply
  AttentionView out;
  int32_t heads, rows, columns, d;
  int32_t row_blocks, feature_blocks;  // of a head's output
  float score_scale;                   // times log2(e): exponents are of 2
  float out_scale;
  // Of the queries, [n, heads, t_q]; in the gradients they are rows or columns.
  float* lse;
  const float* delta;
  bool queries_are_rows;
};

// Which kernel serves a pass.
struct AttentionTile {
  int32_t row_tiles;  // of 16 rows, for each warp
  int32_t slabs;      // of 128 bytes of a row (features), that a block holds of each operand
  bool general;       // any head size and alignment: operands come group by group of slabs
};

constexpr int32_t kAttentionWarps = 4, kSlabBytes = 128, kMostSlabs = 4;

struct AttentionProblem {
  AttentionPass pass;
  int32_t element_bytes;   // 4: products on FMA units, which have the general kernels only
  bool aligned;            // every row of every operand starts at a multiple of 16 bytes
  int64_t heads, rows, d;  // heads: of all images
  int32_t multiprocessors;
};

inline int64_t attention_row_blocks(int64_t rows, const AttentionTile& tile) {
  const int64_t block = kAttentionWarps * 16 * tile.row_tiles;
  return (rows + block - 1) / block;
}

// Two row tiles halve what a product reads of the columns from shared memory; by an A100's data
// sheet one tile reads for as long as it multiplies. They need registers for both, rows to fill
// them, and blocks enough for every multiprocessor. Not yet measured.
inline AttentionTile choose_attention_tile(const AttentionProblem& problem) {
  const int64_t slabs = (problem.d * problem.element_bytes + kSlabBytes - 1) / kSlabBytes;
  if (problem.element_bytes == 4 || !problem.aligned || slabs > kMostSlabs) {
    return {1, slabs <= 2 ? 2 : kMostSlabs, true};
  }
  const AttentionTile tile{2, static_cast<int32_t>(slabs), false};
  const int64_t blocks = problem.heads * attention_row_blocks(problem.rows, tile);
  const int64_t most_slabs = problem.pass == AttentionPass::kForward ? 2 : 1;
  if (slabs <= most_slabs && problem.rows > 64 && blocks >= problem.multiprocessors) return tile;
  return {1, tile.slabs, false};
}

// Launches for one element type, instantiated in attention_*.cu.
template <class T>
const char* launch_attention_forward(const AttentionParams& params, const AttentionTile& tile,
                                     int64_t blocks, void* stream);
template <class T>
const char* launch_attention_grad(const AttentionParams& params, AttentionPass pass,
                                  const AttentionTile& tile, int64_t blocks, void* stream);

struct AttentionDeltaParams {
  AttentionView grad_out, out;
  int32_t heads, t, d;
  int64_t rows;  // of all heads of all images
  float* delta;  // [rows]
};
template <class T>
const char* launch_attention_delta(const AttentionDeltaParams& params, void* stream);

}  // namespace ddsm
