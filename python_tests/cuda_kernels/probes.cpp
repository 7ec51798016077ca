// Single instructions, faulty kernels and pure functions of csrc/cuda, for the tests beside this.
#include "../../csrc/cuda/attention_params.h"
#include "../../csrc/cuda/index_maps.h"
#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/ptx.cuh"
#include "../../csrc/cuda/tile_choice.h"

namespace {

using namespace ddsm;

template <class T>
void multiply_once(const uint32_t* a, const uint32_t* b, float* d) {
  const unsigned lane = ptx::thread_index();
  uint32_t fragment[4];
  float sums[4];
  for (int i = 0; i < 4; ++i) {
    fragment[i] = a[lane * 4 + i];
    sums[i] = d[lane * 4 + i];
  }
  ptx::mma(sums, fragment, b[lane * 2], b[lane * 2 + 1], T{});
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = sums[i];
}

void load_once(const uint32_t* words, uint32_t* d, bool transposed) {
  const unsigned lane = ptx::thread_index();
  for (int i = 0; i < 4; ++i) ptx::store_shared((lane * 4 + i) * 4, words[lane * 4 + i]);
  ptx::sync_threads();
  uint32_t fragment[4];
  if (transposed) ptx::ldmatrix_trans(fragment, lane * 16);
  else ptx::ldmatrix(fragment, lane * 16);
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = fragment[i];
}

void shuffle_once(float* values, const int* lanes) {
  const unsigned lane = ptx::thread_index();
  values[lane] = ptx::shuffle(values[lane], lanes[lane]);
}

// Each does one thing wrong, or right, by its name.
void faulty(int fault, float* global) {
  const uint32_t thread = ptx::thread_index();
  switch (fault) {
    case 0:  // one warp reads what the other wrote, with a barrier
    case 1:  // and without
      ptx::store_shared(thread * 4, 1.0f);
      if (fault == 0) ptx::sync_threads();
      if (thread >= 32) ptx::load_shared<float>((thread - 32) * 4);
      return;
    case 2:  // overwrites what others read
      ptx::store_shared(thread * 4, 1.0f);
      ptx::sync_threads();
      ptx::load_shared<float>(0);
      ptx::store_shared(thread * 4, 2.0f);
      return;
    case 3:
      ptx::store_shared(thread * 4 + 4, 1.0f);
      return;
    case 4:
      ptx::load_shared<float>(thread * 4);
      return;
    case 5:
      ptx::load_global(global + thread + 1);
      return;
    case 6:
      ptx::store_global(global, 1.0f);
      return;
    case 7:
      if (thread < 32) ptx::sync_threads();
      return;
    case 8:  // reads a copy that it does not wait for
      ptx::cp_async(thread * 16, global, 16);
      ptx::cp_async_commit();
      ptx::load_shared<float>(thread * 16);
      return;
    case 9:  // reads another thread's copy with no barrier
      ptx::cp_async(thread * 16, global, 16);
      ptx::cp_async_commit();
      ptx::cp_async_wait<0>();
      if (thread > 0) ptx::load_shared<float>((thread - 1) * 16);
      return;
    case 10:
      ptx::cp_async(thread * 16, global + 1, 16);
      return;
    case 11:
      ptx::store_shared(thread * 4 + 2, 1.0f);
      return;
    case 12:  // odd threads read what even ones wrote, with a barrier of the warp
    case 13:  // and without
      ptx::store_shared(thread * 4, 1.0f);
      if (fault == 12) ptx::sync_warp();
      if (thread % 2 == 1) ptx::load_shared<float>((thread - 1) * 4);
      return;
    case 14:
      if (thread % 32 != 5) ptx::sync_warp();
      return;
    case 15:  // a GPU rounds it up
      ptx::cp_async(thread * 16, global, 3);
      return;
  }
}

}  // namespace

extern "C" {

void multiply_bf16(const uint32_t* a, const uint32_t* b, float* d) {
  simt::run({}, 32, 0, [&] { multiply_once<BFloat16>(a, b, d); });
}
void multiply_fp16(const uint32_t* a, const uint32_t* b, float* d) {
  simt::run({}, 32, 0, [&] { multiply_once<Float16>(a, b, d); });
}
void multiply_tf32(const uint32_t* a, const uint32_t* b, float* d) {
  simt::run({}, 32, 0, [&] { multiply_once<float>(a, b, d); });
}
void load_matrices(const uint32_t* words, uint32_t* d, int transposed) {
  simt::run({}, 32, 512, [&] { load_once(words, d, transposed != 0); });
}
void shuffle_lanes(float* values, const int* lanes) {
  simt::run({}, 32, 0, [&] { shuffle_once(values, lanes); });
}
const char* run_faulty(int fault, float* global, int shared_bytes) {
  return simt::run({}, 64, shared_bytes, [&] { faulty(fault, global); });
}

void to_tf32(const uint32_t* x, uint32_t* y, int count) {
  for (int i = 0; i < count; ++i) y[i] = ptx::to_tf32(x[i]);
}
void round_to_16_bits(const float* x, uint16_t* bf16, uint16_t* fp16, int count) {
  for (int i = 0; i < count; ++i) {
    BFloat16 b;
    Float16 h;
    from_float(x[i], &b);
    from_float(x[i], &h);
    bf16[i] = b.bits;
    fp16[i] = h.bits;
  }
}
void widen_16_bits(const uint16_t* bits, float* bf16, float* fp16, int count) {
  for (int i = 0; i < count; ++i) {
    bf16[i] = to_float(BFloat16{bits[i]});
    fp16[i] = to_float(Float16{bits[i]});
  }
}

int quotient(int divisor, int n) { return Divider(divisor).quotient(n); }
int swizzled(int words, int line, int chunk, int chunks) {
  return words ? swizzled_for_words(line, chunk, chunks)
               : swizzled_for_ldmatrix(line, chunk, chunks);
}
int64_t moment_blocks(int64_t pixels) { return ddsm::moment_blocks(pixels); }
int64_t moment_block_pixels(int64_t pixels, int64_t image, int64_t block) {
  return ddsm::moment_block_pixels(pixels, image, block);
}

const char* choose(int math, int64_t m, int64_t n, int64_t k_steps, int64_t batches,
                   int aligned, int multiprocessors, int* tile, int* splits, char* line) {
  GemmProblem problem{};
  problem.name = "product";
  problem.math = static_cast<Math>(math);
  problem.m = m;
  problem.n = n;
  problem.k_steps = k_steps;
  problem.parts = 1;
  problem.batches = batches;
  problem.aligned = aligned != 0;
  problem.multiprocessors = multiprocessors;
  if (const char* reason = refusal(problem)) return reason;
  const GemmChoice choice = choose_tile(problem);
  *tile = choice.tile;
  *splits = choice.splits;
  describe(problem, choice, line, 256);
  return nullptr;
}

// {row tiles, slabs, general}
void choose_attention(int pass, int element_bytes, int aligned, int64_t heads, int64_t rows,
                      int64_t d, int multiprocessors, int* tile) {
  const AttentionTile choice =
      choose_attention_tile({static_cast<AttentionPass>(pass), element_bytes, aligned != 0, heads,
                             rows, d, multiprocessors});
  tile[0] = choice.row_tiles;
  tile[1] = choice.slabs;
  tile[2] = choice.general;
}

}  // extern "C"
