// Gradient of the weights by Winograd (see winograd.h): tiles of inputs and of output gradients are
// transformed, multiplied frequency by frequency, and the sums transformed back.
#include "winograd.h"
#include "winograd_input.h"

namespace ddsm::DDSM_ISA {
namespace {

constexpr int64_t kVector = Lanes<float>::kCount, kPanel = kPanelLanes<float>;

// Strides in floats of the parts of a block, for a whole block of so many tiles.
template <int kTile>
struct GradLayout {
  int64_t tiles, input_stride, output_stride;      // between tiles
  int64_t input_frequency, output_frequency;       // between frequencies

  GradLayout(const WinogradProblem& problem, const WinogradGradWeight& gradient, int64_t rows) {
    int64_t channels = 0;
    for (int s = 0; s < problem.n_sources; ++s) channels += problem.sources[s].channels;
    tiles = rows * ceil_div(problem.width, kTile);
    input_stride = tile_stride_of(channels);
    // Whole tiles of lanes may be read.
    output_stride = odd_stride(round_up(gradient.grad_y.channels, kTileRows) + kVector);
    input_frequency = odd_stride(tiles * input_stride + kPanel);
    output_frequency = odd_stride(tiles * output_stride);
  }
};

// A y A^T of one tile row: out[frequency][tile][lane].
template <int kTile>
void transform_outputs(const WinogradProblem& problem, const Conv2dImage& grad_y, int64_t n,
                       int64_t tile_row, float* out, const GradLayout<kTile>& layout) {
  constexpr int kAlpha = kTile + 2;
  const int64_t top = tile_row * kTile, across = ceil_div(problem.width, kTile);
  for (int64_t tile = 0; tile < across; ++tile, out += layout.output_stride) {
    const float* from = static_cast<const float*>(grad_y.data) + n * grad_y.n_stride +
                        top * grad_y.h_stride + tile * kTile * grad_y.w_stride;
    for (int64_t lane = 0; lane < grad_y.channels; lane += kVector) {
      const int64_t lanes = smaller(kVector, grad_y.channels - lane);
      FloatVec y[kTile * kTile], m[kAlpha * kAlpha];
      for (int64_t i = 0; i < kTile; ++i) {
        for (int64_t j = 0; j < kTile; ++j) {
          const bool inside = top + i < problem.height && tile * kTile + j < problem.width;
          const float* at = from + i * grad_y.h_stride + j * grad_y.w_stride + lane;
          y[i * kTile + j] = !inside              ? FloatVec{}
                             : lanes == kVector ? load(at)
                                                  : load_first(at, lanes);
        }
      }
      transform_tile<kTile, kAlpha>(y, m, Winograd<kTile>::output_grad);
      DDSM_UNROLL_TILE
      for (int f = 0; f < kAlpha * kAlpha; ++f) {
        store(out + f * layout.output_frequency + lane, m[f]);
      }
    }
  }
}

// sums[i][v] += sum over tiles of outputs[tile][i] * inputs[tile][v]
template <int kVectors>
__attribute__((noinline)) void accumulate_tile(const float* outputs, int64_t output_stride,
                                               const float* inputs, int64_t input_stride,
                                               int64_t tiles, int64_t rows, float* sums,
                                               int64_t sum_stride) {
  typedef Lanes<float>::InMemory Vector;
  Vector sum[kTileRows][kVectors];
  DDSM_UNROLL
  for (int i = 0; i < kTileRows; ++i) {
    DDSM_UNROLL
    for (int v = 0; v < kVectors; ++v) sum[i][v] = Vector{};
  }
  for (int64_t t = 0; t < tiles; ++t, outputs += output_stride, inputs += input_stride) {
    Vector b[kVectors];
    DDSM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      b[v] = *reinterpret_cast<const Vector*>(inputs + v * kVector);
    }
    DDSM_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      DDSM_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[i][v] += outputs[i] * b[v];
    }
  }
  DDSM_UNROLL
  for (int i = 0; i < kTileRows; ++i) {
    if (i < rows) {
      DDSM_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        *reinterpret_cast<Vector*>(sums + i * sum_stride + v * kVector) += sum[i][v];
      }
    }
  }
}

template <int kTile>
void transform_block(const WinogradProblem& problem, const WinogradGradWeight& gradient,
                     const WinogradGradBlock& block, int64_t begin, int64_t end, void* memory) {
  Arena arena{static_cast<char*>(memory), 0};
  WinogradInput<kTile, float> input(problem, arena, false);
  input.begin();
  const GradLayout<kTile> layout(problem, gradient, block.rows);
  const int64_t rows_an_image = ceil_div(problem.height, kTile);
  for (int64_t q = begin; q < end; ++q) {
    const int64_t n = (block.first_row + q) / rows_an_image;
    const int64_t row = (block.first_row + q) % rows_an_image, tile = q * input.tiles_across;
    input.transform_row(n, row, block.inputs + tile * layout.input_stride, layout.input_frequency);
    transform_outputs<kTile>(problem, gradient.grad_y, n, row,
                             block.outputs + tile * layout.output_stride, layout);
  }
}

template <int kTile>
void multiply_block(const WinogradProblem& problem, const WinogradGradWeight& gradient,
                    const WinogradGradBlock& block, int64_t begin, int64_t end) {
  const GradLayout<kTile> layout(problem, gradient, block.rows);
  const int64_t lanes = gradient.grad_y.channels;
  for (int64_t f = begin; f < end; ++f) {
    const float* outputs = block.outputs + f * layout.output_frequency;
    const float* inputs = block.inputs + f * layout.input_frequency;
    float* sums = block.sums + f * lanes * block.sum_stride;
    for (int64_t c = 0; c < block.sum_stride; c += kPanel) {
      const bool narrow = block.sum_stride - c <= kVector;
      for (int64_t lane = 0; lane < lanes; lane += kTileRows) {
        const auto run = narrow ? accumulate_tile<1> : accumulate_tile<2>;
        run(outputs + lane, layout.output_stride, inputs + c, layout.input_stride, layout.tiles,
            lanes - lane, sums + lane * block.sum_stride + c, block.sum_stride);
      }
    }
  }
}

template <int kTile, class TW>
void add_lanes(const WinogradProblem& problem, const WinogradGradWeight& gradient,
               const WinogradGradBlock& block, int64_t begin, int64_t end) {
  constexpr int kAlpha = kTile + 2;
  const Conv2dWeight& weight = gradient.grad_weight;
  const int64_t frequency = gradient.grad_y.channels * block.sum_stride;
  for (int64_t lane = begin; lane < end; ++lane) {
    const float* from = block.sums + lane * block.sum_stride;
    for (int s = 0; s < problem.n_sources; ++s) {
      const Conv2dImage& source = problem.sources[s];
      for (int64_t c = 0; c < source.channels; c += kVector, from += kVector) {
        const int64_t valid = smaller(kVector, source.channels - c);
        FloatVec u[kAlpha * kAlpha], g[9];
        DDSM_UNROLL_TILE
        for (int f = 0; f < kAlpha * kAlpha; ++f) {
          u[f] = valid == kVector ? load(from + f * frequency)
                                  : load_first(from + f * frequency, valid);
        }
        transform_tile<kAlpha, 3>(u, g, Winograd<kTile>::weight_grad);
        TW* to = static_cast<TW*>(weight.data) + lane * weight.out_stride +
                 (source.weight_offset + c) * weight.in_stride;
        for (int64_t q = 0; q < valid; ++q, to += weight.in_stride) {
          for (int r = 0; r < 9; ++r) {
            TW* element = to + r / 3 * weight.r_stride + r % 3 * weight.s_stride;
            from_compute(to_compute(*element) + g[r][q], element);
          }
        }
        if (valid < kVector) from -= kVector - valid;  // the next source begins right behind
      }
    }
  }
}

template <int kTile>
size_t block_floats(const WinogradProblem& problem, const WinogradGradWeight& gradient,
                    int64_t rows, bool inputs) {
  constexpr int64_t kFrequencies = (kTile + 2) * (kTile + 2);
  const GradLayout<kTile> layout(problem, gradient, rows);
  return kFrequencies * (inputs ? layout.input_frequency : layout.output_frequency);
}

}  // namespace

size_t winograd_grad_floats(const WinogradProblem& problem, const WinogradGradWeight& gradient,
                            int64_t rows, bool inputs) {
  return problem.tile == 4 ? block_floats<4>(problem, gradient, rows, inputs)
                           : block_floats<2>(problem, gradient, rows, inputs);
}

size_t winograd_grad_workspace(const WinogradProblem& problem) {
  Arena arena{nullptr, 0};
  if (problem.tile == 4) WinogradInput<4, float>(problem, arena, false);
  else WinogradInput<2, float>(problem, arena, false);
  return arena.used;
}

void winograd_grad_transform(const WinogradProblem& problem, const WinogradGradWeight& gradient,
                             const WinogradGradBlock& block, int64_t begin, int64_t end,
                             void* memory) {
  problem.tile == 4 ? transform_block<4>(problem, gradient, block, begin, end, memory)
                    : transform_block<2>(problem, gradient, block, begin, end, memory);
}

void winograd_grad_multiply(const WinogradProblem& problem, const WinogradGradWeight& gradient,
                            const WinogradGradBlock& block, int64_t begin, int64_t end) {
  problem.tile == 4 ? multiply_block<4>(problem, gradient, block, begin, end)
                    : multiply_block<2>(problem, gradient, block, begin, end);
}

void winograd_grad_add(const WinogradProblem& problem, const WinogradGradWeight& gradient,
                       const WinogradGradBlock& block, int64_t begin, int64_t end) {
  const bool narrow = gradient.grad_weight.dtype == DType::kBFloat16;
  if (problem.tile == 4) {
    narrow ? add_lanes<4, Bf16>(problem, gradient, block, begin, end)
           : add_lanes<4, float>(problem, gradient, block, begin, end);
  } else {
    narrow ? add_lanes<2, Bf16>(problem, gradient, block, begin, end)
           : add_lanes<2, float>(problem, gradient, block, begin, end);
  }
}

}  // namespace ddsm::DDSM_ISA
