// sliced_attention on CUDA: from the arguments to kernels, parameters and launches.
#include "ddsm/attention_cuda.h"

#include <cfloat>
#include <cstdio>
#include <cstdlib>

#include "attention_params.h"
#include "launch.cuh"

namespace ddsm {
namespace {

// Rows and blocks are counted in 32 bits, a block past the end included; offsets in 64.
constexpr int64_t kMost = (int64_t(1) << 31) - 256;

// Null, or why no kernel can serve the arguments.
const char* refusal(const AttentionArgs& args) {
  if (args.dtype == DType::kFloat64) return "no CUDA kernel for float64";
  if (args.t_q > kMost || args.t_k > kMost) return "more than 2^31 positions";
  if (args.d > kMost) return "a head size of more than 2^31";
  if (args.heads > kMost) return "more than 2^31 heads";
  return nullptr;
}

// A [n, heads, t, d] tensor, of which a stride along a dimension of one element says nothing.
AttentionView view_of(const AttentionTensor& tensor, const AttentionArgs& args, int64_t t) {
  const int64_t lanes = 16 / element_bytes(args.dtype);
  const bool vector = reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 &&
                      (args.n == 1 || tensor.n_stride % lanes == 0) &&
                      (args.heads == 1 || tensor.head_stride % lanes == 0) &&
                      (t == 1 || tensor.t_stride % lanes == 0);
  return {tensor.data, tensor.n_stride, tensor.head_stride, tensor.t_stride, vector};
}

// What the passes share; scores are [rows, columns].
AttentionParams params_of(const AttentionArgs& args, bool queries_are_rows) {
  constexpr double kLog2E = 1.4426950408889634;
  AttentionParams params{};
  params.heads = static_cast<int32_t>(args.heads);
  params.rows = static_cast<int32_t>(queries_are_rows ? args.t_q : args.t_k);
  params.columns = static_cast<int32_t>(queries_are_rows ? args.t_k : args.t_q);
  params.d = static_cast<int32_t>(args.d);
  // Never 0, as it multiplies the -inf of what lies past the last key.
  params.score_scale = static_cast<float>(args.scale * kLog2E);
  if (params.score_scale == 0) params.score_scale = FLT_MIN;
  params.out_scale = 1;
  params.lse = static_cast<float*>(args.lse);
  params.delta = static_cast<const float*>(args.scratch);
  params.queries_are_rows = queries_are_rows;
  return params;
}

// One line where DDSM_PRINT_CHOICES asks for it.
void print_choice(AttentionPass pass, const AttentionArgs& args, const AttentionTile& tile) {
  if (!getenv("DDSM_PRINT_CHOICES")) return;
  constexpr const char* kNames[] = {"forward", "gradient of values", "gradient of scores"};
  fprintf(stderr,
          "ddsm_ext: attention %s n=%lld heads=%lld t_q=%lld t_k=%lld d=%lld: %s kernel, "
          "%d row tiles, %d slabs\n",
          kNames[static_cast<int>(pass)], static_cast<long long>(args.n),
          static_cast<long long>(args.heads), static_cast<long long>(args.t_q),
          static_cast<long long>(args.t_k), static_cast<long long>(args.d),
          tile.general ? "general" : "whole-row", tile.row_tiles, tile.slabs);
}

template <class T>
const char* launch_pass(AttentionPass pass, AttentionParams params, const AttentionArgs& args,
                        void* stream) {
  const bool aligned = params.rows0.vector && params.columns0.vector && params.columns1.vector &&
                       (pass != AttentionPass::kGradScores || params.rows1.vector);
  const int64_t heads = args.n * args.heads;
  if (heads == 0 || params.rows == 0) return nullptr;
  const auto bytes = static_cast<int32_t>(element_bytes(args.dtype));
  const AttentionTile tile = choose_attention_tile(
      {pass, bytes, aligned, heads, params.rows, args.d, multiprocessors()});
  print_choice(pass, args, tile);
  const int64_t features = tile.slabs * kSlabBytes / bytes;
  const int64_t row_blocks = attention_row_blocks(params.rows, tile);
  const int64_t feature_blocks = (args.d + features - 1) / features;
  params.row_blocks = static_cast<int32_t>(row_blocks);
  params.feature_blocks = static_cast<int32_t>(feature_blocks);
  if (heads > kMost / row_blocks / feature_blocks) return "more than 2^31 blocks of outputs";
  const int64_t blocks = heads * row_blocks * feature_blocks;
  if (pass == AttentionPass::kForward) {
    return launch_attention_forward<T>(params, tile, blocks, stream);
  }
  return launch_attention_grad<T>(params, pass, tile, blocks, stream);
}

template <class T>
const char* forward(const AttentionArgs& args, void* stream) {
  AttentionParams params = params_of(args, true);
  params.rows0 = view_of(args.q, args, args.t_q);
  params.columns0 = view_of(args.k, args, args.t_k);
  params.columns1 = view_of(args.v, args, args.t_k);
  params.out = view_of(args.out, args, args.t_q);
  return launch_pass<T>(AttentionPass::kForward, params, args, stream);
}

template <class T>
const char* backward(const AttentionArgs& args, void* stream) {
  const AttentionView q = view_of(args.q, args, args.t_q), k = view_of(args.k, args, args.t_k);
  const AttentionView v = view_of(args.v, args, args.t_k);
  const AttentionView grad_out = view_of(args.grad_out, args, args.t_q);
  const int64_t queries = args.n * args.heads * args.t_q;
  if (queries > kMost) return "more than 2^31 queries of all heads";
  if (queries > 0) {
    const AttentionDeltaParams delta{grad_out,
                                     view_of(args.out, args, args.t_q),
                                     static_cast<int32_t>(args.heads),
                                     static_cast<int32_t>(args.t_q),
                                     static_cast<int32_t>(args.d),
                                     queries,
                                     static_cast<float*>(args.scratch)};
    if (const char* error = launch_attention_delta<T>(delta, stream)) return error;
  }
  AttentionParams of_keys = params_of(args, false);
  of_keys.rows0 = k;
  of_keys.columns0 = q;
  of_keys.columns1 = grad_out;
  of_keys.out = view_of(args.grad_v, args, args.t_k);
  if (const char* error = launch_pass<T>(AttentionPass::kGradValue, of_keys, args, stream)) {
    return error;
  }
  of_keys.rows0 = v;
  of_keys.columns0 = grad_out;
  of_keys.rows1 = k;
  of_keys.columns1 = q;
  of_keys.out = view_of(args.grad_k, args, args.t_k);
  of_keys.out_scale = static_cast<float>(args.scale);
  if (const char* error = launch_pass<T>(AttentionPass::kGradScores, of_keys, args, stream)) {
    return error;
  }
  AttentionParams of_queries = params_of(args, true);
  of_queries.rows0 = grad_out;
  of_queries.columns0 = v;
  of_queries.rows1 = q;
  of_queries.columns1 = k;
  of_queries.out = view_of(args.grad_q, args, args.t_q);
  of_queries.out_scale = static_cast<float>(args.scale);
  return launch_pass<T>(AttentionPass::kGradScores, of_queries, args, stream);
}

// Calls run(element) with a number of the arguments' type.
template <class Run>
const char* with_type(const AttentionArgs& args, const Run& run) {
  if (const char* reason = refusal(args)) return reason;
  if (args.dtype == DType::kFloat32) return run(float{});
  return args.dtype == DType::kBFloat16 ? run(BFloat16{}) : run(Float16{});
}

}  // namespace

int64_t attention_backward_cuda_scratch_bytes(const AttentionArgs& args) {
  return args.n * args.heads * args.t_q * static_cast<int64_t>(sizeof(float));
}

const char* attention_forward_cuda(const AttentionArgs& args, void* stream) {
  return with_type(args, [&](auto element) { return forward<decltype(element)>(args, stream); });
}

const char* attention_backward_cuda(const AttentionArgs& args, void* stream) {
  return with_type(args, [&](auto element) { return backward<decltype(element)>(args, stream); });
}

}  // namespace ddsm
