#include "ddsm/step_plan.h"

namespace ddsm {
namespace {

bool call(const Conv2dForwardArgs& args) { return conv2d_forward(args); }
bool call(const LinearsForwardArgs& args) {
  return linears_forward(args.layers.data(), static_cast<int64_t>(args.layers.size()));
}
bool call(const GroupNormMomentsArgs& args) { return group_norm_moments(args), true; }
bool call(const GroupNormMergeArgs& args) { return group_norm_merge(args), true; }
bool call(const GroupNormApplyArgs& args) { return group_norm_apply(args), true; }
bool call(const LayerNormArgs& args) { return layer_norm_forward(args), true; }
bool call(const ResampleArgs& args) { return resample(args), true; }
bool call(const AttentionArgs& args) { return attention_forward(args), true; }

}  // namespace

bool StepPlan::run(int64_t begin, int64_t end) const {
  for (int64_t i = begin; i < end; ++i) {
    if (!std::visit([](const auto& args) { return call(args); }, calls_[i])) return false;
  }
  return true;
}

}  // namespace ddsm
