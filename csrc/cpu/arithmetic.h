// Integer arithmetic of every kernel. Static: each instruction-set variant keeps its own copy (see
// isa.h).
#pragma once

#include <cstdint>

namespace ddsm {

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Blocks of `size` that hold `count`; the last one may be shorter.
static inline int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

static inline int64_t round_up(int64_t count, int64_t multiple) {
  return ceil_div(count, multiple) * multiple;
}

}  // namespace ddsm
