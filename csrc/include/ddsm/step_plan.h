// One step of a network as a list of kernel calls whose buffers are laid out beforehand.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "ddsm/attention.h"
#include "ddsm/conv2d.h"
#include "ddsm/group_norm.h"
#include "ddsm/layer_norm.h"
#include "ddsm/linear.h"
#include "ddsm/resample.h"

namespace ddsm {

// Linear layers of which none reads another's result.
struct LinearsForwardArgs {
  std::vector<LinearForwardArgs> layers;
};

using StepCall = std::variant<Conv2dForwardArgs, LinearsForwardArgs, GroupNormMomentsArgs,
                              GroupNormMergeArgs, GroupNormApplyArgs, LayerNormArgs, ResampleArgs,
                              AttentionArgs>;

class DDSM_EXPORT StepPlan {
 public:
  // calls: how many are going to be added.
  explicit StepPlan(int64_t calls = 0) { calls_.reserve(calls); }

  void add(const StepCall& call) { calls_.push_back(call); }
  int64_t size() const { return static_cast<int64_t>(calls_.size()); }

  // Makes the calls in order; false: not enough memory for a workspace.
  bool run() const { return run(0, size()); }
  bool run(int64_t begin, int64_t end) const;

 private:
  std::vector<StepCall> calls_;
};

}  // namespace ddsm
