// How a rectangle of work is cut into one chunk a thread. Pure arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>

#include "arithmetic.h"

namespace ddsm {

// Chunks along the two sides of the rectangle.
struct Split {
  int64_t first, second;
};

struct SplitPart {
  int64_t first_begin, first_end, second_begin, second_end;
};

// At most `threads` chunks of [0, first_units) x [0, second_units), such that the largest is least
// work: a chunk pays, for each of its units of `first`, `per_first` beside its units of `second`,
// and `per_second` for each of the latter.
inline Split choose_split(int64_t threads, int64_t first_units, int64_t second_units,
                          double per_first, double per_second = 0) {
  Split best{1, 1};
  double least = -1;
  for (int64_t second = 1; second <= std::min(threads, second_units); ++second) {
    const int64_t first = std::min(threads / second, first_units);
    const double a = ceil_div(first_units, first), b = ceil_div(second_units, second);
    const double cost = a * b + a * per_first + b * per_second;
    if (least < 0 || cost < least) {
      least = cost;
      best = {first, second};
    }
  }
  return best;
}

// Chunk `index` of `split`.
inline SplitPart split_part(const Split& split, int64_t index, int64_t first_units,
                            int64_t second_units) {
  const int64_t i = index % split.first, j = index / split.first;
  return {first_units * i / split.first, first_units * (i + 1) / split.first,
          second_units * j / split.second, second_units * (j + 1) / split.second};
}

}  // namespace ddsm
