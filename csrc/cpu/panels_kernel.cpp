// A weight rearranged for one algorithm, whole supernet at once (see ddsm/conv2d.h and winograd.h).
#include "ddsm/conv2d.h"
#include "gemm_pack.h"
#include "winograd_transform.h"

namespace ddsm::DDSM_ISA {
namespace {

// U = G g G^T of kPanel lanes: staged [9][kPanel] -> to[frequency * stride + lane].
template <int kTile>
void transform_weights(const float* staged, bool flipped, float* to, int64_t stride) {
  constexpr int kVector = Lanes<float>::kCount, kAlpha = kTile + 2;
  for (int v = 0; v < kPanelVectors; ++v) {
    FloatVec g[9], u[kAlpha * kAlpha];
    for (int i = 0; i < 9; ++i) {
      g[i] = load(staged + (flipped ? 8 - i : i) * kPanelLanes<float> + v * kVector);
    }
    transform_tile<3, kAlpha>(g, u, Winograd<kTile>::weight);
    for (int f = 0; f < kAlpha * kAlpha; ++f) store(to + f * stride + v * kVector, u[f]);
  }
}

// Calls body(first depth, count) for each stretch of depth of a panel whose weights now lie in
// staged [count][taps][kPanel].
template <class TW, class Body>
void for_each_stage(const GemmArgs& problem, int64_t panel, float* staged, const Body& body) {
  const PanelPlace place = panel_place<float>(problem, panel);
  const int64_t depth = problem.sources[0].channels;
  for (int64_t d = 0; d < depth; d += kPackDepth) {
    const int64_t count = smaller(kPackDepth, depth - d);
    stage_weights<float, TW>(problem, place, d, count, staged);
    body(d, count);
  }
}

template <class TW>
void winograd_panel(const GemmArgs& problem, int64_t panel, int32_t tile, bool flipped, float* to) {
  constexpr int64_t kPanel = kPanelLanes<float>;
  float staged[kPackDepth * 9 * kPanel];
  const int64_t depth = problem.sources[0].channels;
  const int64_t stride = gemm_panels(problem, kPanel) * depth * kPanel;  // between frequencies
  to += panel * depth * kPanel;
  for_each_stage<TW>(problem, panel, staged, [&](int64_t d, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const float* from = staged + i * 9 * kPanel;
      float* out = to + (d + i) * kPanel;
      tile == 4 ? transform_weights<4>(from, flipped, out, stride)
                : transform_weights<2>(from, flipped, out, stride);
    }
  });
}

// Pairs of depth of one panel: to[(tap * pairs + depth / 2) * kPanelRow + lane * 2 + depth % 2].
void bf16_panel(const GemmArgs& problem, int64_t panel, Bf16* to) {
  constexpr int64_t kPanel = kPanelLanes<Bf16>, kRow = kPanelRow<Bf16>;
  alignas(64) float staged[kPackDepth * kLargestPanelKernel * kLargestPanelKernel * kPanel];
  const int64_t taps = problem.weight.taps, pairs = ceil_div(problem.sources[0].channels, 2);
  to += panel * taps * pairs * kRow;
  for_each_stage<Bf16>(problem, panel, staged, [&](int64_t d, int64_t count) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t i = 0; i < (count + 1) / 2 * 2; ++i) {
        const float* from = staged + (i * taps + tap) * kPanel;
        Bf16* out = to + (tap * pairs + (d + i) / 2) * kRow + i % 2;
        for (int64_t v = 0; v < kPanel; ++v) from_compute(i < count ? from[v] : 0.0f, out + 2 * v);
      }
    }
  });
}

}  // namespace

// Panel `panel` of a problem with one source of the allocated channels.
void make_panel(const GemmArgs& problem, const GemmPhase& phase, int64_t panel, float* to) {
  constexpr int64_t kPanel = kPanelLanes<float>;
  alignas(64) float staged[kPackDepth * kLargestPanelKernel * kLargestPanelKernel * kPanel];
  const PanelPlace place = panel_place<float>(problem, panel);
  to += panel * phase.n_taps * problem.sources[0].channels * kPanel;
  if (problem.weight_dtype == DType::kBFloat16) {
    pack_panel<float, Bf16>(problem, phase, place, staged, to);
  } else {
    pack_panel<float, float>(problem, phase, place, staged, to);
  }
}

void make_bf16_panel(const GemmArgs& problem, int64_t panel, void* to) {
  bf16_panel(problem, panel, static_cast<Bf16*>(to));
}

void make_winograd_panel(const GemmArgs& problem, int64_t panel, int32_t tile, bool flipped,
                         float* to) {
  if (problem.weight_dtype == DType::kBFloat16) {
    winograd_panel<Bf16>(problem, panel, tile, flipped, to);
  } else {
    winograd_panel<float>(problem, panel, tile, flipped, to);
  }
}

}  // namespace ddsm::DDSM_ISA
