#include "ddsm/conv2d_choice.h"

#include <algorithm>
#include <limits>

#include "gemm.h"
#include "isa.h"
#include "split.h"

namespace ddsm {

DDSM_DECLARE_VARIANTS(GemmTileShape, gemm_tile_shape, DType compute)

namespace {

// avx2: fitted to the CIFAR-10 U-Net's layers on one thread of a Zen 3 with 512 KB L2, on which the
// choice cost 0.5 % over the best algorithm of each layer. avx512: on one thread of a Zen 4 with
// 1 MB L2 it cost at most 0.5 % at batch 8 and batch 1; the last two constants take F(2 x 2) for
// 4 x 4 pixels at batch 1, with which the digits network's step takes 5 to 25 % less time and that
// of CIFAR-10 as long. portable is a guess, not fitted to any measurement.
constexpr Conv2dCosts kAvx2{42, 34, 0.75, 1.3, 14, 25, 1, 0, 0, 14, 0};
constexpr Conv2dCosts kAvx512{46, 38, 1.5, 2.4, 14, 25, 1.5, 0, 25, 25, 600};
constexpr Conv2dCosts kAvx512Bf16{46, 38, 1.5, 2.4, 14, 25, 1.5, 88, 25, 25, 600};
constexpr Conv2dCosts kPortable{10, 8, 0.35, 0.6, 14, 25, 0.5, 0, 0, 14, 0};

// In which Python finds the panels of an eager call, on a Zen 4.
constexpr double kLookupNs = 2000;

// A sandwich step runs three widths or four on the same weights.
constexpr double kUses = 3;

// m of F(m x m, 3 x 3).
int64_t tile_of(Conv2dAlgo algo) { return algo == Conv2dAlgo::kWinograd4 ? 4 : 2; }

// One matrix product [rows, depth] x [depth, lanes] that reads its panels from memory once.
double product_ns(int64_t rows, int64_t depth, int64_t lanes, double macs_per_ns,
                  double element_bytes, double panel_bytes_per_ns, const Conv2dCosts& costs,
                  const Conv2dGrain& grain) {
  // Of fewer rows, each takes longer: their sums wait for each other.
  const double tile_rows = std::max<int64_t>(rows, std::min<int64_t>(grain.rows / 2, 4));
  const double panels = static_cast<double>(depth) * round_up(lanes, grain.lanes);
  return costs.frequency_ns + std::max(tile_rows * panels / macs_per_ns,
                                       element_bytes * panels / panel_bytes_per_ns);
}

// What the tiles of a direct convolution cost beside their products, which is much where a tap has
// few channels.
double segments_ns(const Conv2dProblem& p, int64_t pixels, int64_t taps, const Conv2dCosts& costs,
                   const Conv2dGrain& grain) {
  return costs.segment_ns * taps * ceil_div(pixels, grain.rows) * ceil_div(p.c_out, grain.lanes);
}

double winograd_ns(const Conv2dProblem& p, int64_t tile, const Conv2dCosts& costs,
                   const Conv2dGrain& grain) {
  const int64_t down = ceil_div(p.out_height, tile), across = ceil_div(p.out_width, tile);
  const int64_t tiles = p.images * down * across, frequencies = (tile + 2) * (tile + 2);
  // A tile of 16 outputs moves 36 numbers each way, one of 4 moves 16.
  const double expansion = frequencies / (2.25 * tile * tile);
  const double outputs = static_cast<double>(tiles) * tile * tile;
  const double product =
      product_ns(tiles, p.c_in, p.c_out, costs.winograd_macs_per_ns, 4,
                 tile == 2 ? costs.small_panel_bytes_per_ns : costs.panel_bytes_per_ns, costs,
                 grain);
  return (p.eager ? kLookupNs : 0) + frequencies * product +
         static_cast<double>(frequencies) * p.rearranged / kUses / costs.rearranged_per_ns +
         expansion * outputs * p.c_in / costs.input_floats_per_ns +
         expansion * outputs * round_up(p.c_out, grain.lanes / 2) / costs.output_floats_per_ns;
}

// The gradient of the weights: sums of c_in x c_out a frequency, made zero, added to for every
// block of tiles, and transformed back.
double winograd_grad_ns(const Conv2dProblem& p, int64_t tile, const Conv2dCosts& costs) {
  const int64_t down = ceil_div(p.out_height, tile), across = ceil_div(p.out_width, tile);
  const double tiles = p.images * down * across, frequencies = (tile + 2) * (tile + 2);
  const double sums = static_cast<double>(p.c_in) * p.c_out;
  const double expansion = frequencies / 2.25;
  return frequencies * tiles * sums / costs.winograd_macs_per_ns +
         frequencies * 2 * sums / costs.rearranged_per_ns +
         expansion * tiles * (p.c_in + p.c_out) / costs.input_floats_per_ns;
}

}  // namespace

double conv2d_cost_ns(const Conv2dProblem& p, Conv2dAlgo algo, const Conv2dCosts& costs,
                      const Conv2dGrain& grain) {
  const bool winograd = p.kernel == 3 && p.stride == 1;
  if (p.grad_weight) {
    if (algo == Conv2dAlgo::kDirect) {
      return static_cast<double>(p.images * p.out_height * p.out_width) * p.kernel * p.kernel *
             p.c_in * p.c_out / (p.scale * p.scale == 4 ? 2.25 : 1) / costs.macs_per_ns;
    }
    return winograd ? winograd_grad_ns(p, tile_of(algo), costs)
                    : std::numeric_limits<double>::infinity();
  }
  const int64_t pixels = p.images * p.out_height * p.out_width;
  if (algo == Conv2dAlgo::kDirectBf16) {
    if (!p.bf16 || p.scale != 1 || p.kernel > kLargestPanelKernel ||
        costs.bf16_macs_per_ns == 0) {
      return std::numeric_limits<double>::infinity();
    }
    const int64_t taps = p.kernel * p.kernel;
    return (p.eager ? kLookupNs : costs.direct_ns) +
           product_ns(pixels, taps * p.c_in, p.c_out, costs.bf16_macs_per_ns, 2,
                      costs.panel_bytes_per_ns, costs, grain) +
           segments_ns(p, pixels, taps, costs, grain) +
           0.5 * taps * p.rearranged / kUses / costs.rearranged_per_ns;
  }
  if (algo == Conv2dAlgo::kDirect) {
    const bool phases = p.scale == 2 && p.stride == 1;
    const double start_ns = p.eager ? 0 : costs.direct_ns;
    if (!phases) {
      const int64_t taps = p.kernel * p.kernel;
      return start_ns +
             product_ns(pixels, taps * p.c_in, p.c_out, costs.macs_per_ns, 4,
                        costs.panel_bytes_per_ns, costs, grain) +
             segments_ns(p, pixels, taps, costs, grain);
    }
    const int64_t taps = p.kernel / 2 + 1;  // of each of the four phases, along one axis
    return start_ns +
           4 * product_ns(pixels / 4, taps * taps * p.c_in, p.c_out, costs.macs_per_ns, 4,
                          costs.panel_bytes_per_ns, costs, grain) +
           segments_ns(p, pixels, taps * taps, costs, grain);
  }
  return winograd ? winograd_ns(p, tile_of(algo), costs, grain)
                  : std::numeric_limits<double>::infinity();
}

Conv2dAlgo conv2d_choose(const Conv2dProblem& problem, const Conv2dCosts& costs,
                         const Conv2dGrain& grain) {
  Conv2dAlgo best = Conv2dAlgo::kDirect;
  for (Conv2dAlgo algo :
       {Conv2dAlgo::kWinograd4, Conv2dAlgo::kWinograd2, Conv2dAlgo::kDirectBf16}) {
    if (conv2d_cost_ns(problem, algo, costs, grain) < conv2d_cost_ns(problem, best, costs, grain)) {
      best = algo;
    }
  }
  return best;
}

Conv2dCosts conv2d_costs() {
  switch (active_isa()) {
    case Isa::kAvx512Bf16:
      return kAvx512Bf16;
    case Isa::kAvx512:
      return kAvx512;
    case Isa::kAvx2:
      return kAvx2;
    default:
      return kPortable;
  }
}

Conv2dGrain conv2d_grain() {
  const GemmTileShape shape = DDSM_CALL_VARIANT(gemm_tile_shape, DType::kFloat32);
  return {shape.lanes, shape.rows};
}

}  // namespace ddsm
