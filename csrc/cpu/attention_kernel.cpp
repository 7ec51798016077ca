// Softmax attention, forward and backward, by blocks of queries: only a block's rows of the score
// matrix exist at a time.
//
// Per (image, head) the operands are packed once into panels of the compute type; then every
// block is a few products by the one microkernel of panel_gemm.h. With S = scale q k^T,
// P = exp(S - lse), delta = rowsum(do * o):
//   dv = P^T do,  dS = P * (do v^T - delta),  dq = scale dS k,  dk = scale dS^T q.
// Backward, one thread a head: dk and dv are summed over the query blocks, five products. Several
// threads a head: query blocks give dq; parts of the keys, walking over the query blocks and
// computing their scores again, give dk and dv: seven products, no atomics. Both sum in the same
// order, so results do not depend on threads.
#include "ddsm/attention.h"

#include <math.h>

#include <cstring>

#include "lanes.h"
#include "panel_gemm.h"

namespace ddsm::DDSM_ISA {
namespace {

// Rows of a block: whole tiles, few enough for the scores against 1024 keys to stay in a
// second-level cache of 512 KB.
constexpr int64_t kBlockRows = 56 / kTileRows * kTileRows;

// Rows of a block of the forward, which sums nothing over blocks: fewer, so that two threads find
// equal shares of one head's 256 queries.
constexpr int64_t kForwardRows = 28 / kTileRows * kTileRows;

// Keys of a part, where several threads share the dk and dv of a head; a multiple of every panel.
constexpr int64_t kKeyPart = 64;

inline double log_of(double x) { return ::log(x); }
inline float log_of(float x) { return ::logf(x); }

template <class C>
inline C largest_of(Vec<C> v) {
  C lanes[Lanes<C>::kCount];
  store(lanes, v);
#pragma GCC unroll 4
  for (int half = Lanes<C>::kCount / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      lanes[i] = lanes[i + half] > lanes[i] ? lanes[i + half] : lanes[i];
    }
  }
  return lanes[0];
}

// s [padded] holds `count` scores in whole vectors: out, which may begin where s does, becomes
// exp(scale * s - max); returns the sum of these and the max.
template <class C, class Out>
double softmax_row(C* s, int64_t count, int64_t padded, C scale, Out* out, C* max_out) {
  constexpr int64_t kLanes = Lanes<C>::kCount, kChunk = 512;
  for (int64_t i = 0; i < padded; i += kLanes) store(s + i, load(s + i) * scale);
  for (int64_t i = count; i < padded; ++i) s[i] = -__builtin_inff();
  Vec<C> top = load(s);
  for (int64_t i = kLanes; i < padded; i += kLanes) {
    const Vec<C> v = load(s + i);
    top = v > top ? v : top;
  }
  const C max = largest_of<C>(top);
  // Chunks keep the fp32 sums short. The padding adds at most 1e-37 to a sum of at least 1.
  double total = 0;
  for (int64_t from = 0; from < padded; from += kChunk) {
    const int64_t to = from + kChunk < padded ? from + kChunk : padded;
    Vec<C> sum = {};
    int64_t i = from;
    for (; i + kPanel<C> <= to; i += kPanel<C>) {
      Vec<C> e[2] = {load(s + i) - max, load(s + i + kLanes) - max};
      exp(e);
      store(out + i, e[0]);
      store(out + i + kLanes, e[1]);
      sum += e[0] + e[1];
    }
    if (i < to) {
      Vec<C> e[1] = {load(s + i) - max};
      exp(e);
      store(out + i, e[0]);
      sum += e[0];
    }
    total += sum_of<C>(sum);
  }
  *max_out = max;
  return total;
}

template <class T>
struct Attention {
  using C = Compute<T>;
  static constexpr int64_t kLanes = Lanes<C>::kCount;
  static constexpr bool kPairs = kHasPairs && sizeof(T) == 2;

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
    if (i < d) store_first(out + i, load(values + i) * factor, d - i);
  }

  // ---- forward ---------------------------------------------------------------------------------

  // True if the forward multiplies pairs of bfloat16 as they lie in q and k.
  bool paired() const {
    const auto whole = [](const AttentionTensor& tensor) {
      return (tensor.n_stride | tensor.head_stride | tensor.t_stride) % 2 == 0 &&
             reinterpret_cast<uintptr_t>(tensor.data) % 4 == 0;
    };
    return kPairs && d % 2 == 0 && whole(args.q) && whole(args.k);
  }

  struct ForwardPacked {
    C *k_columns, *v;  // k^T: [t_k_padded / panel][d][panel]; v: [d_padded / panel][t_k][panel]
  };
  int64_t forward_packed_size() const { return t_k_padded * d + d_padded * t_k; }
  int64_t forward_block_size() const { return kForwardRows * (d + t_k_padded + d_padded); }

  ForwardPacked forward_packed(C* scratch) const { return {scratch, scratch + t_k_padded * d}; }

  // Part 0 packs the keys, part 1 the values.
  template <bool paired>
  void forward_pack(int64_t head, int64_t part, C* scratch) const {
    const ForwardPacked packed = forward_packed(scratch);
    const T *k = row(args.k, head, 0), *v = row(args.v, head, 0);
    if constexpr (paired) {
      const C* k_pairs = reinterpret_cast<const C*>(k);
      if (part == 0) pack_transposed(k_pairs, args.k.t_stride / 2, t_k, d / 2, packed.k_columns);
      else pack_row_pairs(v, args.v.t_stride, t_k, d, packed.v);
    } else {
      if (part == 0) pack_transposed(k, args.k.t_stride, t_k, d, packed.k_columns);
      else pack_rows(v, args.v.t_stride, t_k, d, packed.v);
    }
  }

  // With pairs, depth counts them, and a row of weights takes half of its row of scores.
  template <bool paired>
  void forward_block(int64_t head, int64_t block, C* packed_scratch, C* scratch) const {
    const ForwardPacked packed = forward_packed(packed_scratch);
    C* scores = scratch;                             // [rows, t_k_padded]
    C* sums = scores + kForwardRows * t_k_padded;    // [rows, d_padded]
    C* q = sums + kForwardRows * d_padded;           // [rows, d]
    const int64_t from = block * kForwardRows;
    const int64_t count = smaller(t_q - from, kForwardRows);
    const int64_t rows = round_up(count, 2), columns = round_up(t_k, kLanes);
    const int64_t depth = paired ? d / 2 : d, keys = paired ? (t_k + 1) / 2 : t_k;
    if constexpr (paired) {
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(q + i * depth, row(args.q, head, from + i), d * sizeof(T));
      }
      std::memset(q + count * depth, 0, (rows - count) * depth * sizeof(C));
    } else {
      copy_block(args.q, head, from, count, 1, q);
    }
    gemm<Order::kRows, paired>(q, depth, packed.k_columns, depth, rows, columns, depth, scores,
                               t_k_padded);
    C factors[kForwardRows];
    for (int64_t i = 0; i < count; ++i) {
      C* s = scores + i * t_k_padded;
      C max, scale = static_cast<C>(args.scale);
      const double sum =
          paired ? softmax_row(s, t_k, columns, scale, reinterpret_cast<T*>(s), &max)
                 : softmax_row(s, t_k, columns, scale, s, &max);
      factors[i] = static_cast<C>(1 / sum);
      if (args.lse) lse(head)[from + i] = static_cast<C>(max + log_of(sum));
    }
    gemm<Order::kRows, paired>(scores, t_k_padded, packed.v, keys, rows, round_up(d, kLanes), keys,
                               sums, d_padded);
    for (int64_t i = 0; i < count; ++i) {
      store_row(sums + i * d_padded, factors[i], row(args.out, head, from + i));
    }
  }

  // ---- backward --------------------------------------------------------------------------------

  struct BackwardPacked {
    C* delta;                   // [t_q], padded to whole panels like all parts
    C *k_columns, *v_columns;   // k^T, v^T: [t_k_padded / panel][d][panel]
    C *q, *grad_out;            // [d_padded / panel][t_q][panel]
    C* k;                       // [d_padded / panel][t_k][panel]
  };
  int64_t backward_packed_size() const {
    return t_q_padded + 2 * t_k_padded * d + d_padded * (2 * t_q + t_k);
  }
  BackwardPacked backward_packed(C* scratch) const {
    BackwardPacked packed;
    packed.delta = scratch;
    packed.k_columns = packed.delta + t_q_padded;
    packed.v_columns = packed.k_columns + t_k_padded * d;
    packed.q = packed.v_columns + t_k_padded * d;
    packed.grad_out = packed.q + d_padded * t_q;
    packed.k = packed.grad_out + d_padded * t_q;
    return packed;
  }

  void backward_pack(int64_t head, C* scratch) const {
    const BackwardPacked packed = backward_packed(scratch);
    const T *k = row(args.k, head, 0), *v = row(args.v, head, 0);
    pack_transposed(k, args.k.t_stride, t_k, d, packed.k_columns);
    pack_transposed(v, args.v.t_stride, t_k, d, packed.v_columns);
    pack_rows(k, args.k.t_stride, t_k, d, packed.k);
    pack_rows(row(args.q, head, 0), args.q.t_stride, t_q, d, packed.q);
    pack_rows(row(args.grad_out, head, 0), args.grad_out.t_stride, t_q, d, packed.grad_out);
    for (int64_t t = 0; t < t_q; ++t) {
      const T *o = row(args.out, head, t), *g = row(args.grad_out, head, t);
      double delta = 0;
      for (int64_t i = 0; i < d; ++i) {
        delta += static_cast<double>(to_compute(o[i])) * to_compute(g[i]);
      }
      packed.delta[t] = static_cast<C>(delta);
    }
  }

  // Work memory of a query block against keys: all of them, or a part of kKeyPart.
  struct BackwardWork {
    C *scores, *grads;     // [rows, key columns], and slack that a transposed read may touch
    C *q, *grad_out;       // [rows, d]
    C* grad_q;             // [rows, d_padded]
    C *grad_k, *grad_v;    // [key rows, d_padded]
  };
  int64_t key_rows() const { return round_up(t_k_padded, kTileRows); }
  int64_t backward_block_size() const {
    return 2 * (kBlockRows * t_k_padded + kPanel<C>) + kBlockRows * (2 * d + d_padded) +
           2 * key_rows() * d_padded;
  }
  BackwardWork backward_work(C* scratch) const {
    BackwardWork work;
    work.scores = scratch;
    work.grads = work.scores + kBlockRows * t_k_padded + kPanel<C>;
    work.grad_q = work.grads + kBlockRows * t_k_padded + kPanel<C>;
    work.grad_k = work.grad_q + kBlockRows * d_padded;
    work.grad_v = work.grad_k + key_rows() * d_padded;
    work.q = work.grad_v + key_rows() * d_padded;
    work.grad_out = work.q + kBlockRows * d;
    return work;
  }

  // scores -> P and grads = do v^T -> dS, in place.
  static void grad_scores(C* scores, C* grads, int64_t padded, C lse, C delta) {
    for (int64_t i = 0; i < padded; i += kPanel<C>) {
      Vec<C> p[2] = {load(scores + i) - lse, load(scores + i + kLanes) - lse};
      exp(p);
      for (int v = 0; v < 2; ++v) {
        store(scores + i + v * kLanes, p[v]);
        store(grads + i + v * kLanes, p[v] * (load(grads + i + v * kLanes) - delta));
      }
    }
  }

  // P and dS of the queries [from, from + count) against the keys [first_key, + columns).
  void block_scores(int64_t head, int64_t from, int64_t count, int64_t first_key, int64_t columns,
                    const BackwardPacked& packed, const BackwardWork& work) const {
    const int64_t rows = round_up(count, kTileRows);
    copy_block(args.q, head, from, count, static_cast<C>(args.scale), work.q);
    copy_block(args.grad_out, head, from, count, 1, work.grad_out);
    gemm(work.q, d, packed.k_columns + first_key * d, d, rows, columns, d, work.scores, columns);
    gemm(work.grad_out, d, packed.v_columns + first_key * d, d, rows, columns, d, work.grads,
         columns);
    for (int64_t i = 0; i < count; ++i) {
      grad_scores(work.scores + i * columns, work.grads + i * columns, columns,
                  lse(head)[from + i], packed.delta[from + i]);
    }
  }

  void block_grad_q(int64_t head, int64_t from, int64_t count, const BackwardPacked& packed,
                    const BackwardWork& work) const {
    gemm(work.grads, t_k_padded, packed.k, t_k, round_up(count, kTileRows), d_padded, t_k,
         work.grad_q, d_padded);
    for (int64_t i = 0; i < count; ++i) {
      store_row(work.grad_q + i * d_padded, static_cast<C>(args.scale),
                row(args.grad_q, head, from + i));
    }
  }

  // Adds the queries [from, from + count) to dk and dv; the first ones overwrite. The tiles' last
  // rows may be beyond the scores' columns: they hold values of no meaning, which are never stored.
  void block_grad_kv(int64_t from, int64_t count, int64_t columns, const BackwardPacked& packed,
                     const BackwardWork& work) const {
    const int64_t rows = round_up(columns, kTileRows), at = from * kPanel<C>;
    gemm<Order::kColumns>(work.scores, columns, packed.grad_out + at, t_q, rows, d_padded, count,
                          work.grad_v, d_padded, from > 0);
    gemm<Order::kColumns>(work.grads, columns, packed.q + at, t_q, rows, d_padded, count,
                          work.grad_k, d_padded, from > 0);
  }

  void store_grad_kv(int64_t head, int64_t first_key, int64_t count,
                     const BackwardWork& work) const {
    for (int64_t i = 0; i < count; ++i) {
      store_row(work.grad_v + i * d_padded, 1, row(args.grad_v, head, first_key + i));
      store_row(work.grad_k + i * d_padded, static_cast<C>(args.scale),
                row(args.grad_k, head, first_key + i));
    }
  }

  void backward_head(int64_t head, C* packed_scratch, C* scratch) const {
    const BackwardPacked packed = backward_packed(packed_scratch);
    const BackwardWork work = backward_work(scratch);
    for (int64_t from = 0; from < t_q; from += kBlockRows) {
      const int64_t count = smaller(t_q - from, kBlockRows);
      block_scores(head, from, count, 0, t_k_padded, packed, work);
      block_grad_q(head, from, count, packed, work);
      block_grad_kv(from, count, t_k_padded, packed, work);
    }
    store_grad_kv(head, 0, t_k, work);
  }

  void backward_query_block(int64_t head, int64_t block, C* packed_scratch, C* scratch) const {
    const BackwardPacked packed = backward_packed(packed_scratch);
    const BackwardWork work = backward_work(scratch);
    const int64_t from = block * kBlockRows, count = smaller(t_q - from, kBlockRows);
    block_scores(head, from, count, 0, t_k_padded, packed, work);
    block_grad_q(head, from, count, packed, work);
  }

  void backward_key_part(int64_t head, int64_t part, C* packed_scratch, C* scratch) const {
    const BackwardPacked packed = backward_packed(packed_scratch);
    const BackwardWork work = backward_work(scratch);
    const int64_t first_key = part * kKeyPart;
    const int64_t columns = smaller(t_k_padded - first_key, kKeyPart);
    for (int64_t from = 0; from < t_q; from += kBlockRows) {
      const int64_t count = smaller(t_q - from, kBlockRows);
      block_scores(head, from, count, first_key, columns, packed, work);
      block_grad_kv(from, count, columns, packed, work);
    }
    store_grad_kv(head, first_key, smaller(t_k - first_key, columns), work);
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

  // pack(head, index, packed) in `packs` parts for every head, and then the work of a head, which
  // two functions can do: whole(head, packed, scratch), or part(head, index, packed, scratch) for
  // each of its `parts`.
  template <class Pack, class Whole, class Part>
  void run(int64_t parts, int64_t packed_size, int64_t block_size, int64_t packs, const Pack& pack,
           const Whole& whole, const Part& part) const {
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
        for (int64_t i = 0; i < packs; ++i) pack(head, i, packed + slot * packed_size);
        whole(head, packed + slot * packed_size, scratch + slot * block_size);
      });
      return;
    }
    for_each_in_slot(heads * packs, [&](int64_t, int64_t unit) {
      pack(unit / packs, unit % packs, packed + unit / packs * packed_size);
    });
    for_each_in_slot(heads * parts, [&](int64_t slot, int64_t unit) {
      const int64_t head = unit / parts;
      part(head, unit % parts, packed + head * packed_size, scratch + slot * block_size);
    });
  }

  void forward() const {
    if constexpr (kPairs) {
      if (paired()) return forward_as<true>();
    }
    forward_as<false>();
  }

  template <bool paired>
  void forward_as() const {
    const int64_t blocks = ceil_div(t_q, kForwardRows);
    const auto block = [&](int64_t head, int64_t index, C* packed, C* scratch) {
      forward_block<paired>(head, index, packed, scratch);
    };
    run(blocks, forward_packed_size(), forward_block_size(),
        2, [&](int64_t head, int64_t part, C* packed) { forward_pack<paired>(head, part, packed); },
        [&](int64_t head, C* packed, C* scratch) {
          for (int64_t index = 0; index < blocks; ++index) block(head, index, packed, scratch);
        },
        block);
  }

  void backward() const {
    const int64_t blocks = ceil_div(t_q, kBlockRows), key_parts = ceil_div(t_k, kKeyPart);
    if (t_q == 0) return zero_grad_kv();
    run(blocks + key_parts, backward_packed_size(), backward_block_size(),
        1, [&](int64_t head, int64_t, C* packed) { backward_pack(head, packed); },
        [&](int64_t head, C* packed, C* scratch) { backward_head(head, packed, scratch); },
        [&](int64_t head, int64_t index, C* packed, C* scratch) {
          if (index < blocks) backward_query_block(head, index, packed, scratch);
          else backward_key_part(head, index - blocks, packed, scratch);
        });
  }

  // No query: nothing was read.
  void zero_grad_kv() const {
    for (int64_t head = 0; head < args.n * args.heads; ++head) {
      for (int64_t t = 0; t < t_k; ++t) {
        T *k = row(args.grad_k, head, t), *v = row(args.grad_v, head, t);
        for (int64_t i = 0; i < d; ++i) {
          from_compute(C(0), k + i);
          from_compute(C(0), v + i);
        }
      }
    }
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
