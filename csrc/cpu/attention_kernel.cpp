// Softmax attention, forward and backward, by blocks of queries (forward, dq) or keys (dk, dv):
// only a block's rows of the score matrix exist at a time.
//
// Per (image, head) the operands are packed once into panels of the compute type; then every
// block is a few products by the one microkernel of panel_gemm.h. With S = scale q k^T,
// P = exp(S - lse), delta = rowsum(do * o):
//   dv = P^T do,  dS = P * (do v^T - delta),  dq = scale dS k,  dk = scale dS^T q.
// Each output row is computed by one block: no atomics, and results do not depend on threads.
#include "ddsm/attention.h"

#include <math.h>

#include "lanes.h"
#include "panel_gemm.h"

namespace ddsm::DDSM_ISA {
namespace {

// Rows of a block: whole tiles, few enough for the scores against 1024 keys to stay in a
// second-level cache of 512 KB.
constexpr int64_t kBlockRows = 56 / kTileRows * kTileRows;

inline double log_of(double x) { return ::log(x); }
inline float log_of(float x) { return ::logf(x); }
inline int64_t blocks_of(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// s [padded] holds `count` scores: turns them into exp(s - max), returns their sum and the max.
template <class C>
double softmax_row(C* s, int64_t count, int64_t padded, C* max_out) {
  constexpr int64_t kLanes = Lanes<C>::kCount, kChunk = 512;
  for (int64_t i = count; i < padded; ++i) s[i] = -__builtin_inff();
  Vec<C> top = load(s);
  for (int64_t i = kLanes; i < padded; i += kLanes) {
    const Vec<C> v = load(s + i);
    top = v > top ? v : top;
  }
  C max = top[0];
  for (int64_t i = 1; i < kLanes; ++i) max = top[i] > max ? top[i] : max;
  // Chunks keep the fp32 sums short. The padding adds at most 1e-37 to a sum of at least 1.
  double total = 0;
  for (int64_t from = 0; from < padded; from += kChunk) {
    const int64_t to = from + kChunk < padded ? from + kChunk : padded;
    Vec<C> sum = {};
    for (int64_t i = from; i < to; i += kLanes) {
      const Vec<C> e = exp(load(s + i) - max);
      store(s + i, e);
      sum += e;
    }
    for (int64_t i = 0; i < kLanes; ++i) total += sum[i];
  }
  *max_out = max;
  return total;
}

template <class T>
struct Attention {
  using C = Compute<T>;
  static constexpr int64_t kLanes = Lanes<C>::kCount;

  const AttentionArgs& args;
  const int64_t t_q, t_k, d;
  const int64_t t_q_padded, t_k_padded, d_padded;  // to whole panels

  explicit Attention(const AttentionArgs& a)
      : args(a), t_q(a.t_q), t_k(a.t_k), d(a.d), t_q_padded(round_up(a.t_q, kPanel<C>)),
        t_k_padded(round_up(a.t_k, kPanel<C>)), d_padded(round_up(a.d, kPanel<C>)) {}

  T* row(const AttentionTensor& tensor, int64_t head, int64_t t) const {
    return static_cast<T*>(tensor.data) + head / args.heads * tensor.n_stride +
           head % args.heads * tensor.head_stride + t * tensor.t_stride;
  }
  C* lse(int64_t head) const { return static_cast<C*>(args.lse) + head * t_q; }

  // rows [from, from + count) of the tensor's head, times factor, in `a` with whole tiles of rows.
  void copy_block(const AttentionTensor& tensor, int64_t head, int64_t from, int64_t count,
                  C factor, C* a) const {
    copy_rows(row(tensor, head, from), tensor.t_stride, count, d, factor,
              round_up(count, kTileRows), a);
  }

  // a row of d results, times factor, to the tensor.
  void store_row(const C* values, C factor, T* out) const {
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) store(out + i, load(values + i) * factor);
    for (; i < d; ++i) from_compute(values[i] * factor, out + i);
  }

  // ---- forward ---------------------------------------------------------------------------------

  struct ForwardPacked {
    C *k_columns, *v;  // k^T: [t_k_padded / panel][d][panel]; v: [d_padded / panel][t_k][panel]
  };
  int64_t forward_packed_size() const { return t_k_padded * d + d_padded * t_k; }
  int64_t forward_block_size() const { return kBlockRows * (d + t_k_padded + d_padded); }

  ForwardPacked forward_packed(C* scratch) const { return {scratch, scratch + t_k_padded * d}; }

  void forward_pack(int64_t head, C* scratch) const {
    const ForwardPacked packed = forward_packed(scratch);
    pack_transposed(row(args.k, head, 0), args.k.t_stride, t_k, d, packed.k_columns);
    pack_rows(row(args.v, head, 0), args.v.t_stride, t_k, d, packed.v);
  }

  void forward_block(int64_t head, int64_t block, C* packed_scratch, C* scratch) const {
    const ForwardPacked packed = forward_packed(packed_scratch);
    C* scores = scratch;                             // [rows, t_k_padded]
    C* sums = scores + kBlockRows * t_k_padded;      // [rows, d_padded]
    C* q = sums + kBlockRows * d_padded;             // [rows, d]
    const int64_t from = block * kBlockRows;
    const int64_t count = t_q - from < kBlockRows ? t_q - from : kBlockRows;
    const int64_t rows = round_up(count, kTileRows);
    copy_block(args.q, head, from, count, static_cast<C>(args.scale), q);
    gemm(q, d, packed.k_columns, rows, t_k_padded, d, scores, t_k_padded);
    C factors[kBlockRows];
    for (int64_t i = 0; i < count; ++i) {
      C max;
      const double sum = softmax_row(scores + i * t_k_padded, t_k, t_k_padded, &max);
      factors[i] = static_cast<C>(1 / sum);
      lse(head)[from + i] = static_cast<C>(max + log_of(sum));
    }
    gemm(scores, t_k_padded, packed.v, rows, d_padded, t_k, sums, d_padded);
    for (int64_t i = 0; i < count; ++i) {
      store_row(sums + i * d_padded, factors[i], row(args.out, head, from + i));
    }
  }

  // ---- backward --------------------------------------------------------------------------------

  struct BackwardPacked {
    C *lse, *delta;                                  // [t_q_padded]
    C *q_columns, *grad_columns;                     // q^T, do^T: [t_q_padded / panel][d][panel]
    C *k_columns, *v_columns;                        // k^T, v^T: [t_k_padded / panel][d][panel]
    C *q, *grad;                                     // [d_padded / panel][t_q][panel]
    C* k;                                            // [d_padded / panel][t_k][panel]
  };
  int64_t backward_packed_size() const {
    return 2 * t_q_padded + 2 * (t_q_padded + t_k_padded) * d + d_padded * (2 * t_q + t_k);
  }
  int64_t backward_block_size() const {
    return kBlockRows * (2 * larger(t_q_padded, t_k_padded) + d_padded + 2 * d);
  }

  BackwardPacked backward_packed(C* next) const {
    auto take = [&](int64_t count) {
      C* part = next;
      next += count;
      return part;
    };
    BackwardPacked packed;
    packed.lse = take(t_q_padded);
    packed.delta = take(t_q_padded);
    packed.q_columns = take(t_q_padded * d);
    packed.grad_columns = take(t_q_padded * d);
    packed.k_columns = take(t_k_padded * d);
    packed.v_columns = take(t_k_padded * d);
    packed.q = take(d_padded * t_q);
    packed.grad = take(d_padded * t_q);
    packed.k = take(d_padded * t_k);
    return packed;
  }

  void backward_pack(int64_t head, C* scratch) const {
    const BackwardPacked packed = backward_packed(scratch);
    const T *q = row(args.q, head, 0), *k = row(args.k, head, 0), *v = row(args.v, head, 0);
    const T* grad = row(args.grad_out, head, 0);
    pack_transposed(q, args.q.t_stride, t_q, d, packed.q_columns);
    pack_transposed(grad, args.grad_out.t_stride, t_q, d, packed.grad_columns);
    pack_transposed(k, args.k.t_stride, t_k, d, packed.k_columns);
    pack_transposed(v, args.v.t_stride, t_k, d, packed.v_columns);
    pack_rows(q, args.q.t_stride, t_q, d, packed.q);
    pack_rows(grad, args.grad_out.t_stride, t_q, d, packed.grad);
    pack_rows(k, args.k.t_stride, t_k, d, packed.k);
    for (int64_t t = 0; t < t_q_padded; ++t) {
      packed.lse[t] = t < t_q ? lse(head)[t] : 0;
      double delta = 0;
      if (t < t_q) {
        const T *o = row(args.out, head, t), *g = row(args.grad_out, head, t);
        for (int64_t i = 0; i < d; ++i) {
          delta += static_cast<double>(to_compute(o[i])) * to_compute(g[i]);
        }
      }
      packed.delta[t] = static_cast<C>(delta);
    }
  }

  // scores -> P and dP -> dS in place, `count` elements of a row.
  static void grad_scores(C* scores, C* grads, int64_t padded, C lse, C delta) {
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Vec<C> p = exp(load(scores + i) - lse);
      store(grads + i, p * (load(grads + i) - delta));
    }
  }
  static void grad_scores(C* scores, C* grads, int64_t padded, const C* lse, const C* delta) {
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Vec<C> p = exp(load(scores + i) - load(lse + i));
      store(scores + i, p);
      store(grads + i, p * (load(grads + i) - load(delta + i)));
    }
  }

  void backward_query_block(int64_t head, int64_t block, C* packed_scratch, C* scratch) const {
    const BackwardPacked packed = backward_packed(packed_scratch);
    C* scores = scratch;                          // [rows, t_k_padded]
    C* grads = scores + kBlockRows * t_k_padded;  // [rows, t_k_padded]
    C* result = grads + kBlockRows * t_k_padded;  // [rows, d_padded]
    C* q = result + kBlockRows * d_padded;        // [rows, d]
    C* grad_out = q + kBlockRows * d;             // [rows, d]
    const int64_t from = block * kBlockRows;
    const int64_t count = t_q - from < kBlockRows ? t_q - from : kBlockRows;
    const int64_t rows = round_up(count, kTileRows);
    const C scale = static_cast<C>(args.scale);
    copy_block(args.q, head, from, count, scale, q);
    copy_block(args.grad_out, head, from, count, 1, grad_out);
    gemm(q, d, packed.k_columns, rows, t_k_padded, d, scores, t_k_padded);
    gemm(grad_out, d, packed.v_columns, rows, t_k_padded, d, grads, t_k_padded);
    for (int64_t i = 0; i < count; ++i) {
      grad_scores(scores + i * t_k_padded, grads + i * t_k_padded, t_k_padded,
                  packed.lse[from + i], packed.delta[from + i]);
    }
    gemm(grads, t_k_padded, packed.k, rows, d_padded, t_k, result, d_padded);
    for (int64_t i = 0; i < count; ++i) {
      store_row(result + i * d_padded, scale, row(args.grad_q, head, from + i));
    }
  }

  void backward_key_block(int64_t head, int64_t block, C* packed_scratch, C* scratch) const {
    const BackwardPacked packed = backward_packed(packed_scratch);
    C* scores = scratch;                          // [rows, t_q_padded], rows are keys
    C* grads = scores + kBlockRows * t_q_padded;  // [rows, t_q_padded]
    C* result = grads + kBlockRows * t_q_padded;  // [rows, d_padded]
    C* k = result + kBlockRows * d_padded;        // [rows, d]
    C* v = k + kBlockRows * d;                    // [rows, d]
    const int64_t from = block * kBlockRows;
    const int64_t count = t_k - from < kBlockRows ? t_k - from : kBlockRows;
    const int64_t rows = round_up(count, kTileRows);
    const C scale = static_cast<C>(args.scale);
    copy_block(args.k, head, from, count, scale, k);
    copy_block(args.v, head, from, count, 1, v);
    gemm(k, d, packed.q_columns, rows, t_q_padded, d, scores, t_q_padded);
    gemm(v, d, packed.grad_columns, rows, t_q_padded, d, grads, t_q_padded);
    for (int64_t i = 0; i < count; ++i) {
      grad_scores(scores + i * t_q_padded, grads + i * t_q_padded, t_q_padded, packed.lse,
                  packed.delta);
    }
    gemm(scores, t_q_padded, packed.grad, rows, d_padded, t_q, result, d_padded);
    for (int64_t i = 0; i < count; ++i) {
      store_row(result + i * d_padded, 1, row(args.grad_v, head, from + i));
    }
    gemm(grads, t_q_padded, packed.q, rows, d_padded, t_q, result, d_padded);
    for (int64_t i = 0; i < count; ++i) {
      store_row(result + i * d_padded, scale, row(args.grad_k, head, from + i));
    }
  }

  // ---- schedule --------------------------------------------------------------------------------

  // Whole heads a slot where that is balanced: its packed operands then stay in its cache.
  bool by_head() const {
    const int64_t heads = args.n * args.heads;
    return args.slots == 1 || heads % args.slots == 0 || heads >= 4 * args.slots;
  }
  int64_t scratch_bytes(int64_t packed_size, int64_t block_size) const {
    const int64_t packed_count = by_head() ? args.slots : args.n * args.heads;
    return (packed_count * packed_size + args.slots * block_size) * sizeof(C);
  }

  // pack(head, packed) for every head, then compute(head, block, packed, scratch) for its blocks.
  template <class Pack, class Compute>
  void run(int64_t blocks, int64_t packed_size, int64_t block_size, const Pack& pack,
           const Compute& compute) const {
    const int64_t heads = args.n * args.heads, slots = args.slots;
    const bool whole_heads = by_head();
    C* const packed = static_cast<C*>(args.scratch);
    C* const scratch = packed + (whole_heads ? slots : heads) * packed_size;
    auto for_each_in_slot = [&](int64_t units, const auto& body) {
      parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
        for (int64_t slot = begin; slot < end; ++slot) {
          const int64_t last = (slot + 1) * units / slots;
          for (int64_t unit = slot * units / slots; unit < last; ++unit) body(slot, unit);
        }
      });
    };
    if (whole_heads) {
      for_each_in_slot(heads, [&](int64_t slot, int64_t head) {
        pack(head, packed + slot * packed_size);
        for (int64_t b = 0; b < blocks; ++b) {
          compute(head, b, packed + slot * packed_size, scratch + slot * block_size);
        }
      });
      return;
    }
    for_each_in_slot(heads, [&](int64_t, int64_t head) { pack(head, packed + head * packed_size); });
    for_each_in_slot(heads * blocks, [&](int64_t slot, int64_t unit) {
      const int64_t head = unit / blocks;
      compute(head, unit % blocks, packed + head * packed_size, scratch + slot * block_size);
    });
  }

  void forward() const {
    run(blocks_of(t_q), forward_packed_size(), forward_block_size(),
        [&](int64_t head, C* packed) { forward_pack(head, packed); },
        [&](int64_t head, int64_t block, C* packed, C* scratch) {
          forward_block(head, block, packed, scratch);
        });
  }

  void backward() const {
    const int64_t query_blocks = blocks_of(t_q);
    run(query_blocks + blocks_of(t_k), backward_packed_size(), backward_block_size(),
        [&](int64_t head, C* packed) { backward_pack(head, packed); },
        [&](int64_t head, int64_t block, C* packed, C* scratch) {
          if (block < query_blocks) backward_query_block(head, block, packed, scratch);
          else backward_key_block(head, block - query_blocks, packed, scratch);
        });
  }
};

// Calls body with an Attention of the element type.
template <class Body>
auto dispatch(const AttentionArgs& args, const Body& body) {
  if (args.dtype == DType::kFloat64) return body(Attention<double>(args));
  if (args.dtype == DType::kBFloat16) return body(Attention<Bf16>(args));
  return body(Attention<float>(args));
}

}  // namespace

int64_t attention_forward_scratch_bytes(const AttentionArgs& args) {
  return dispatch(args, [](const auto& op) {
    return op.scratch_bytes(op.forward_packed_size(), op.forward_block_size());
  });
}

int64_t attention_backward_scratch_bytes(const AttentionArgs& args) {
  return dispatch(args, [](const auto& op) {
    return op.scratch_bytes(op.backward_packed_size(), op.backward_block_size());
  });
}

void attention_forward(const AttentionArgs& args) {
  dispatch(args, [](const auto& op) { op.forward(); });
}

void attention_backward(const AttentionArgs& args) {
  dispatch(args, [](const auto& op) { op.backward(); });
}

}  // namespace ddsm::DDSM_ISA
