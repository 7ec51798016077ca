#include "ddsm/step_plan.h"

namespace ddsm {
namespace {

bool call(const Conv2dForwardArgs& args) { return conv2d_forward(args); }
bool call(const LinearForwardArgs& args) { return linear_forward(args); }
bool call(const NormMergeArgs& args) {
  norm_merge(args);
  return true;
}
bool call(const NormApplyArgs& args) {
  norm_apply(args);
  return true;
}
bool call(const AttentionArgs& args) {
  attention_forward(args);
  return true;
}

}  // namespace

bool StepPlan::run(int64_t begin, int64_t end) const {
  for (int64_t i = begin; i < end; ++i) {
    if (!std::visit([](const auto& args) { return call(args); }, calls_[i])) return false;
  }
  return true;
}

}  // namespace ddsm
