#include "ddsm/digest.h"

#include <cstring>
#include <vector>

#include "arithmetic.h"

namespace ddsm {
namespace {

// Chains that a core multiplies at the same time: one alone would wait for each product.
constexpr int kChains = 8;
constexpr int64_t kWord = sizeof(uint64_t);
// Bytes of a part: parts may go to several threads, and do not depend on how many.
constexpr int64_t kPart = 1 << 16;
// Parts that pay for waking a thread.
constexpr int64_t kGrain = 8;

// One to one in `sum` and in `word`, and every bit of both reaches every bit of later sums: the
// product carries up, the rotation brings down.
inline uint64_t mix(uint64_t sum, uint64_t word) {
  const uint64_t product = (sum ^ word) * 0x9e3779b97f4a7c15;
  return product << 29 | product >> 35;
}

uint64_t part_digest(const char* data, int64_t bytes) {
  uint64_t chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = 0x2545f4914f6cdd1d + i;
  for (; bytes >= kChains * kWord; bytes -= kChains * kWord, data += kChains * kWord) {
#pragma GCC unroll 8
    for (int i = 0; i < kChains; ++i) {
      uint64_t word;
      std::memcpy(&word, data + i * kWord, kWord);
      chains[i] = mix(chains[i], word);
    }
  }
  for (; bytes > 0; bytes -= kWord, data += kWord) {
    uint64_t word = 0;
    std::memcpy(&word, data, static_cast<size_t>(smaller(bytes, kWord)));
    chains[0] = mix(chains[0], word);
  }
  uint64_t sum = 0;
  for (uint64_t chain : chains) sum = mix(sum, chain);
  return mix(sum, 0);
}

}  // namespace

uint64_t digest(const void* data, int64_t bytes) {
  const char* from = static_cast<const char*>(data);
  const int64_t parts = ceil_div(bytes, kPart);
  if (parts <= 1) return part_digest(from, bytes);
  std::vector<uint64_t> digests(parts);
  parallel_for(0, parts, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      digests[p] = part_digest(from + p * kPart, smaller(kPart, bytes - p * kPart));
    }
  });
  uint64_t sum = 0;
  for (uint64_t part : digests) sum = mix(sum, part);
  return sum;
}

}  // namespace ddsm
