// Group norm with fused SiLU on CUDA, forward, for one or two NHWC sources.
//
// Three launches, no atomics, every sum in a fixed order:
//   moments  (pixel block, 32 channels)  mean and sum of squared deviations of each channel
//   merge    (image, group)              Chan's formula in double over blocks and channels
//   apply    (pixel block)               y = act((x - mean) * rstd * gamma + beta)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "ddsm/group_norm.h"

namespace ddsm {
namespace {

constexpr int kChannelsPerCta = 32;    // one warp across: 64 or 128 bytes of adjacent channels
constexpr int kRowsPerCta = 8;         // warps of a moments CTA
constexpr int64_t kBlockPixels = 256;  // pixels of a moments CTA: 32 a thread, short fp32 sums
constexpr int kMergeThreads = 128;
constexpr int kApplyThreads = 256;
constexpr int64_t kApplyPixels = 32;  // pixels of an apply CTA
// More CTAs than a grid dimension takes are walked in a loop.
constexpr int64_t kMaxGrid = int64_t(1) << 30;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline void from_float(float x, float* out) { *out = x; }
__device__ inline void from_float(float x, __nv_bfloat16* out) { *out = __float2bfloat16_rn(x); }
__device__ inline void from_float(float x, __half* out) { *out = __float2half_rn(x); }

// V elements as one memory access.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T lane[V];
};

struct Moments {
  float mean, m2;
};

// What the kernels need of a source; first_channel counts over both sources.
template <class T>
struct Source {
  const T* x;
  T* y;
  int64_t c, pixel_stride, first_channel, param_offset;
};

int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
unsigned grid_of(int64_t count) {
  return static_cast<unsigned>(count < kMaxGrid ? count : kMaxGrid);
}

// moments [n, pixel blocks, channels]
template <class T>
__global__ void __launch_bounds__(kChannelsPerCta* kRowsPerCta)
    group_norm_moments_kernel(Source<T> source, int64_t n, int64_t pixels, int64_t channels,
                              Moments* moments) {
  __shared__ float sums[kRowsPerCta][kChannelsPerCta], squares[kRowsPerCta][kChannelsPerCta];
  const int64_t channel_blocks = (source.c + kChannelsPerCta - 1) / kChannelsPerCta;
  const int64_t pixel_blocks = (pixels + kBlockPixels - 1) / kBlockPixels;
  const int64_t ctas = n * pixel_blocks * channel_blocks;
  for (int64_t cta = blockIdx.x; cta < ctas; cta += gridDim.x) {
    const int64_t c = cta % channel_blocks * kChannelsPerCta + threadIdx.x;
    const int64_t block = cta / channel_blocks;  // over images and their pixel blocks
    const int64_t first = block % pixel_blocks * kBlockPixels;
    const int64_t left = pixels - first;
    const int rows = static_cast<int>(left < kBlockPixels ? left : kBlockPixels);
    float shift = 0, sum = 0, square = 0;
    if (c < source.c) {
      // Deviations from the block's first pixel: data, so the squares cannot cancel badly.
      const T* x = source.x + (block / pixel_blocks * pixels + first) * source.pixel_stride + c;
      shift = to_float(x[0]);
      for (int r = threadIdx.y; r < rows; r += kRowsPerCta) {
        const float d = to_float(x[r * source.pixel_stride]) - shift;
        sum += d;
        square = fmaf(d, d, square);
      }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    squares[threadIdx.y][threadIdx.x] = square;
    __syncthreads();
    if (threadIdx.y == 0 && c < source.c) {
      for (int i = 1; i < kRowsPerCta; ++i) {
        sum += sums[i][threadIdx.x];
        square += squares[i][threadIdx.x];
      }
      const float delta = sum / rows;
      moments[block * channels + source.first_channel + c] = {shift + delta,
                                                              fmaxf(square - sum * delta, 0.0f)};
    }
    __syncthreads();  // the next round writes the shared arrays again
  }
}

// The sum of `value` over the CTA, in a fixed order, for every thread.
__device__ inline double cta_sum(double value, double* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int half = kMergeThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  const double total = shared[0];
  __syncthreads();
  return total;
}

__global__ void __launch_bounds__(kMergeThreads)
    group_norm_merge_kernel(const Moments* moments, int64_t n, int64_t pixels, int64_t channels,
                            int64_t groups, double eps, float* mean_out, float* rstd_out) {
  __shared__ double shared[kMergeThreads];
  const int64_t size = channels / groups;
  const int64_t pixel_blocks = (pixels + kBlockPixels - 1) / kBlockPixels;
  const int64_t parts = pixel_blocks * size;
  const double count = static_cast<double>(pixels) * size;
  for (int64_t cta = blockIdx.x; cta < n * groups; cta += gridDim.x) {
    const Moments* of_image = moments + cta / groups * pixel_blocks * channels;
    const int64_t first_channel = cta % groups * size;
    auto part = [&](int64_t i) {
      return of_image[i / size * channels + first_channel + i % size];
    };
    auto rows = [&](int64_t i) {
      const int64_t left = pixels - i / size * kBlockPixels;
      return static_cast<double>(left < kBlockPixels ? left : kBlockPixels);
    };
    double sum = 0;
    for (int64_t i = threadIdx.x; i < parts; i += kMergeThreads) sum += rows(i) * part(i).mean;
    const double mean = cta_sum(sum, shared) / count;
    double m2 = 0;
    for (int64_t i = threadIdx.x; i < parts; i += kMergeThreads) {
      const double d = part(i).mean - mean;
      m2 += part(i).m2 + rows(i) * d * d;
    }
    const double variance = cta_sum(m2, shared) / count;
    if (threadIdx.x == 0) {
      mean_out[cta] = static_cast<float>(mean);
      rstd_out[cta] = static_cast<float>(1 / sqrt(variance + eps));
    }
  }
}

template <class T, class P, int V>
__global__ void __launch_bounds__(kApplyThreads)
    group_norm_apply_kernel(Source<T> source, int64_t n, int64_t pixels, int64_t group_size,
                            int64_t groups, bool silu, const P* weight, const P* bias,
                            const float* mean, const float* rstd) {
  const int64_t pixel_blocks = (pixels + kApplyPixels - 1) / kApplyPixels;
  const int64_t packs = source.c / V;
  for (int64_t cta = blockIdx.x; cta < n * pixel_blocks; cta += gridDim.x) {
    const int64_t image = cta / pixel_blocks, first = cta % pixel_blocks * kApplyPixels;
    const int64_t left = pixels - first;
    const int64_t rows = left < kApplyPixels ? left : kApplyPixels;
    for (int64_t item = threadIdx.x; item < rows * packs; item += kApplyThreads) {
      const int64_t pixel = image * pixels + first + item / packs;
      const int64_t c = item % packs * V;
      const Pack<T, V> in =
          *reinterpret_cast<const Pack<T, V>*>(source.x + pixel * source.pixel_stride + c);
      Pack<T, V> out;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const int64_t group = image * groups + (source.first_channel + c + i) / group_size;
        const float gamma = to_float(weight[source.param_offset + c + i]);
        const float beta = to_float(bias[source.param_offset + c + i]);
        const float u = fmaf((to_float(in.lane[i]) - mean[group]) * rstd[group], gamma, beta);
        from_float(silu ? u / (1.0f + expf(-u)) : u, &out.lane[i]);
      }
      *reinterpret_cast<Pack<T, V>*>(source.y + pixel * source.c + c) = out;
    }
  }
}

template <class T>
Source<T> source_of(const GroupNormArgs& args, int64_t index) {
  const GroupNormSource& s = args.sources[index];
  return {static_cast<const T*>(s.x), static_cast<T*>(s.y),         s.c,
          s.x_pixel_stride,           index ? args.sources[0].c : 0, s.param_offset};
}

// True if every pixel of the source can be read and written as packs of 16 bytes.
template <class T>
bool takes_packs(const Source<T>& source) {
  constexpr int64_t kPack = 16 / sizeof(T);
  return source.c % kPack == 0 && source.pixel_stride % kPack == 0 &&
         reinterpret_cast<uintptr_t>(source.x) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(source.y) % 16 == 0;
}

template <class T, class P, int V>
void launch_apply(const GroupNormArgs& args, const Source<T>& source, int64_t channels,
                  cudaStream_t stream) {
  const unsigned grid = grid_of(args.n * blocks_of(args.pixels, kApplyPixels));
  group_norm_apply_kernel<T, P, V><<<grid, kApplyThreads, 0, stream>>>(
      source, args.n, args.pixels, channels / args.groups, args.groups, args.silu,
      static_cast<const P*>(args.weight), static_cast<const P*>(args.bias),
      static_cast<const float*>(args.mean), static_cast<const float*>(args.rstd));
}

template <class T, class P>
cudaError_t forward(const GroupNormArgs& args, cudaStream_t stream) {
  auto* moments = static_cast<Moments*>(args.scratch);
  int64_t channels = 0;
  for (int64_t s = 0; s < args.source_count; ++s) channels += args.sources[s].c;
  const int64_t blocks = args.n * blocks_of(args.pixels, kBlockPixels);
  for (int64_t s = 0; s < args.source_count; ++s) {
    const Source<T> source = source_of<T>(args, s);
    const unsigned grid = grid_of(blocks * blocks_of(source.c, kChannelsPerCta));
    group_norm_moments_kernel<T><<<grid, dim3(kChannelsPerCta, kRowsPerCta), 0, stream>>>(
        source, args.n, args.pixels, channels, moments);
  }
  group_norm_merge_kernel<<<grid_of(args.n * args.groups), kMergeThreads, 0, stream>>>(
      moments, args.n, args.pixels, channels, args.groups, args.eps,
      static_cast<float*>(args.mean), static_cast<float*>(args.rstd));
  for (int64_t s = 0; s < args.source_count; ++s) {
    const Source<T> source = source_of<T>(args, s);
    if (takes_packs(source)) launch_apply<T, P, 16 / sizeof(T)>(args, source, channels, stream);
    else launch_apply<T, P, 1>(args, source, channels, stream);
  }
  return cudaGetLastError();
}

template <class T>
cudaError_t forward_of(const GroupNormArgs& args, cudaStream_t stream) {
  return args.param_dtype == DType::kFloat32 ? forward<T, float>(args, stream)
                                             : forward<T, T>(args, stream);
}

}  // namespace

int64_t group_norm_cuda_scratch_bytes(const GroupNormArgs& args) {
  int64_t channels = 0;
  for (int64_t s = 0; s < args.source_count; ++s) channels += args.sources[s].c;
  return args.n * blocks_of(args.pixels, kBlockPixels) * channels *
         static_cast<int64_t>(sizeof(Moments));
}

const char* group_norm_forward_cuda(const GroupNormArgs& args, void* stream_handle) {
  if (args.n == 0 || args.pixels == 0) return nullptr;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  cudaError_t error = cudaErrorInvalidValue;  // a dtype that the bindings should have refused
  if (args.dtype == DType::kFloat32) error = forward_of<float>(args, stream);
  if (args.dtype == DType::kBFloat16) error = forward_of<__nv_bfloat16>(args, stream);
  if (args.dtype == DType::kFloat16) error = forward_of<__half>(args, stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ddsm
