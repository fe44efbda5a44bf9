// Targets and losses of labels on CUDA devices. For the sums a warp walks through pixels with its lanes along the queries,
// so that masks are read in whole lines; each block leaves a partial sum, and a second kernel adds them up in their order.

#include "label_losses.h"

#include <algorithm>

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace panoptic_mapper {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kQueries = 128;  // queries that a block counts: 4 a lane; more of them are more blocks, along y
constexpr int kPerLane = kQueries / 32;
constexpr int kPixelsPerBlock = 1024;
constexpr unsigned kAllLanes = 0xffffffffu;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__global__ void targets_kernel(TargetImages images, int64_t* panoptic, int64_t* semantic, float* weights) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= images.height * images.width) return;
  const PixelTarget target = find_label_target(images, i / images.width, i % images.width);
  panoptic[i] = target.panoptic, semantic[i] = target.semantic, weights[i] = target.weight;
}

__device__ float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(kAllLanes, x, offset);
  return x;
}

// partials: [gridDim.x, num_sums]. Block (x, y) counts the queries from y * kQueries on; y = 0 the pixels' sums too.
__global__ void sums_kernel(LabelImages im, float* partials) {
  __shared__ float shared[kWarps][3 * kQueries];
  __shared__ float pixel_sums[kWarps][LabelImages::kPixelSums];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int Q = im.Q, first = blockIdx.y * kQueries;
  float intersection[kPerLane] = {}, target[kPerLane] = {}, mask[kPerLane] = {};
  float sums[LabelImages::kPixelSums] = {};
  const int64_t begin = (int64_t)blockIdx.x * kPixelsPerBlock;
  const int64_t end = begin + kPixelsPerBlock < im.num_pixels ? begin + kPixelsPerBlock : im.num_pixels;
  for (int64_t base = begin + warp * 32; base < end; base += kThreads) {
    const int64_t own = base + lane;
    int own_query = -1, own_told = 0;
    if (own < end) {
      own_query = im.query_of(own);
      own_told = im.is_told(own);
      if (blockIdx.y == 0) {
        const int semantic = im.semantic_column(own), panoptic = im.panoptic_column(own);
        const float weight = im.weights[own], *logs = im.logs + own * im.num_logs();
        if (semantic >= 0) sums[0] += weight * logs[semantic], sums[1] += weight;
        if (panoptic >= 0) sums[2] += weight * logs[panoptic], sums[3] += weight;
      }
    }
    const int num = (int)(end - base < 32 ? end - base : 32);
    for (int i = 0; i < num; ++i) {
      const int query = __shfl_sync(kAllLanes, own_query, i), told = __shfl_sync(kAllLanes, own_told, i);
      if (!told && query < 0) continue;
      const float* masks = im.masks + (base + i) * im.Q;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int q = first + j * 32 + lane;
        if (q >= Q) continue;
        const float m = masks[q];
        if (told) mask[j] += m;
        if (q == query) intersection[j] += m, target[j] += 1;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int at = j * 32 + lane;
    shared[warp][at] = intersection[j];
    shared[warp][kQueries + at] = target[j];
    shared[warp][2 * kQueries + at] = mask[j];
  }
#pragma unroll
  for (int i = 0; i < LabelImages::kPixelSums; ++i) {
    const float sum = warp_sum(sums[i]);
    if (lane == 0) pixel_sums[warp][i] = sum;
  }
  __syncthreads();
  float* out = partials + (int64_t)blockIdx.x * im.num_sums();
  if (blockIdx.y == 0 && threadIdx.x < LabelImages::kPixelSums) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += pixel_sums[w][threadIdx.x];
    out[threadIdx.x] = sum;
  }
  for (int i = threadIdx.x; i < 3 * kQueries; i += kThreads) {
    const int kind = i / kQueries, q = first + i % kQueries;
    if (q >= Q) continue;
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared[w][i];
    out[LabelImages::kPixelSums + kind * Q + q] = sum;
  }
}

// One block: a warp for each sum in turn, then the losses.
__global__ void finish_kernel(LabelImages im, const float* partials, int num_blocks, float* sums, float* losses) {
  __shared__ float of_warps[2][kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_sums = im.num_sums(), Q = im.Q;
  for (int i = warp; i < num_sums; i += kWarps) {
    float sum = 0;
    for (int block = lane; block < num_blocks; block += 32) sum += partials[(int64_t)block * num_sums + i];
    sum = warp_sum(sum);
    if (lane == 0) sums[i] = sum;
  }
  __syncthreads();
  float total = 0, num_matched = 0;
  for (int q = threadIdx.x; q < Q; q += kThreads) {
    const DiceOf dice(sums, Q, q);
    total += dice.value, num_matched += dice.is_matched;
  }
  total = warp_sum(total), num_matched = warp_sum(num_matched);
  if (lane == 0) of_warps[0][warp] = total, of_warps[1][warp] = num_matched;
  __syncthreads();
  if (threadIdx.x > 0) return;
  total = num_matched = 0;
  for (int w = 0; w < kWarps; ++w) total += of_warps[0][w], num_matched += of_warps[1][w];
  losses[0] = -sums[0] / at_least_one(sums[1]);
  losses[1] = -sums[2] / at_least_one(sums[3]);
  losses[2] = total / at_least_one(num_matched);
}

// Blocks along y: 0 the gradient of the masks, 1 that of the logarithms.
__global__ void backward_kernel(LabelImages im, const float* v, const float* sums, float* v_masks, float* v_logs) {
  __shared__ float num_matched;
  const int Q = im.Q, width = blockIdx.y == 0 ? Q : im.num_logs();
  if (blockIdx.y == 0 && threadIdx.x < 32) {
    float count = 0;
    for (int q = threadIdx.x; q < Q; q += 32) count += DiceOf(sums, Q, q).is_matched;
    count = warp_sum(count);
    if (threadIdx.x == 0) num_matched = count;
  }
  __syncthreads();
  const int64_t step = (int64_t)gridDim.x * kThreads, num = im.num_pixels * width;
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < num; i += step) {
    const int64_t pixel = i / width;
    const int column = (int)(i - pixel * width);
    if (blockIdx.y == 0) {
      v_masks[i] = v_mask_at(im, v, sums, num_matched, pixel, column);
    } else {
      v_logs[i] = v_log_at(im, v, sums, pixel, column);
    }
  }
}

}  // namespace

void launch_label_targets(const TargetImages& images, int64_t* panoptic, int64_t* semantic, float* weights, int device) {
  const int64_t num_pixels = images.height * images.width;
  if (num_pixels == 0) return;
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  targets_kernel<<<(unsigned)ceil_div(num_pixels, kThreads), kThreads, 0, stream>>>(images, panoptic, semantic, weights);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

int64_t label_losses_blocks(int64_t num_pixels) { return ceil_div(num_pixels, kPixelsPerBlock); }

void launch_label_losses(const LabelImages& images, int64_t blocks, float* partials, float* sums, float* losses,
                         int device) {
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  const int64_t of_queries = std::max<int64_t>(1, ceil_div(images.Q, kQueries));
  if (blocks > 0) {
    sums_kernel<<<dim3((unsigned)blocks, (unsigned)of_queries), kThreads, 0, stream>>>(images, partials);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  finish_kernel<<<1, kThreads, 0, stream>>>(images, partials, (int)blocks, sums, losses);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_label_losses_backward(const LabelImages& images, const float* v_losses, const float* sums,
                                  float* v_masks, float* v_logs, int device) {
  if (images.num_pixels == 0) return;
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  const int64_t blocks = std::min<int64_t>(ceil_div(images.num_pixels * images.num_logs(), kThreads), 4096);
  backward_kernel<<<dim3((unsigned)blocks, 2), kThreads, 0, stream>>>(images, v_losses, sums, v_masks, v_logs);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace panoptic_mapper
