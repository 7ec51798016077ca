// Splits sliced_activation and its gradient over torch's pool.
#include "ddsm/activation.h"

#include <cstring>

#include "activation_range.h"
#include "arithmetic.h"
#include "isa.h"

namespace ddsm {

// Rows [begin, end) over all images.
DDSM_DECLARE_VARIANTS(void, activation_rows, const ActivationArgs& args, int64_t begin,
                      int64_t end)
DDSM_DECLARE_VARIANTS(void, activation_backward_range, const ActivationBackwardArgs& args,
                      const ActivationRange& range)

namespace {

// Elements that pay for waking a thread: about 5 us of work.
constexpr int64_t kGrainElements = 16384;

int64_t grain_of(int64_t elements) { return kGrainElements / larger(elements, 1) + 1; }

// One range for each image and kGateChannels.
void backward_with_gate(const ActivationBackwardArgs& args) {
  if (args.rows == 0) {
    const int64_t bytes = args.dtype == DType::kFloat64 ? 8 : 4;
    std::memset(args.grad_gate, 0, args.images * args.channels * bytes);
    return;
  }
  const int64_t strips = ceil_div(args.channels, kGateChannels);
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / strips * args.rows, channel = i % strips * kGateChannels;
      const ActivationRange range{row, row + args.rows, channel,
                                  smaller(channel + kGateChannels, args.channels)};
      DDSM_CALL_VARIANT(activation_backward_range, args, range);
    }
  };
  parallel_for(0, args.images * strips, grain_of(args.rows * kGateChannels), run);
}

}  // namespace

void activation(const ActivationArgs& args) {
  const auto run = [&](int64_t begin, int64_t end) {
    DDSM_CALL_VARIANT(activation_rows, args, begin, end);
  };
  parallel_for(0, args.images * args.rows, grain_of(args.channels), run);
}

void activation_backward(const ActivationBackwardArgs& args) {
  if (args.grad_gate) return backward_with_gate(args);
  const auto run = [&](int64_t begin, int64_t end) {
    const ActivationRange range{begin, end, 0, args.channels};
    DDSM_CALL_VARIANT(activation_backward_range, args, range);
  };
  parallel_for(0, args.images * args.rows, grain_of(args.channels), run);
}

}  // namespace ddsm
