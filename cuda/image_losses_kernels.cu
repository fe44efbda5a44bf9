// Losses of images on CUDA devices: a thread for each pixel, and one for each window and channel.

#include "image_losses.h"

#include <algorithm>

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace panoptic_mapper {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kFinishThreads = 32 * kSums;  // a warp for each sum
constexpr unsigned kAllLanes = 0xffffffffu;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(kAllLanes, x, offset);
  return x;
}

// partials: [gridDim.x, kSums]. The first blocks take windows, which are more work than pixels.
__global__ void __launch_bounds__(kThreads) sums_kernel(LossImages im, int64_t window_blocks, WindowGradient* windows,
                                                        float* partials) {
  __shared__ float of_warps[kWarps][kSums];
  float sums[kSums] = {};
  const bool is_of_windows = blockIdx.x < window_blocks;
  const int64_t i = (blockIdx.x - (is_of_windows ? 0 : window_blocks)) * kThreads + threadIdx.x;
  if (is_of_windows && i < 3 * im.num_windows()) {
    sums[kSsimSum] = window_ssim(im, i / 3, (int)(i % 3), windows[i]);
  } else if (!is_of_windows && i < im.num_pixels()) {
    add_image_pixel(im, i, sums);
  }
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    const float sum = warp_sum(sums[s]);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32][s] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kSums) return;
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += of_warps[w][threadIdx.x];
  partials[(int64_t)blockIdx.x * kSums + threadIdx.x] = sum;
}

__global__ void __launch_bounds__(kFinishThreads) finish_kernel(LossImages im, const float* partials, int num_blocks,
                                                                float* sums, float* terms) {
  const int lane = threadIdx.x % 32, s = threadIdx.x / 32;
  float sum = 0;
#pragma unroll 8
  for (int block = lane; block < num_blocks; block += 32) sum += partials[(int64_t)block * kSums + s];
  sum = warp_sum(sum);
  if (lane == 0) sums[s] = sum;
  __syncthreads();
  if (threadIdx.x == 0) losses_of_sums(im, sums, terms);
}

__global__ void __launch_bounds__(kThreads) gradients_kernel(LossImages im, const float* sums,
                                                             const WindowGradient* windows, float* v_image,
                                                             float* v_alpha) {
  const int64_t pixel = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (pixel < im.num_pixels()) write_image_gradients(im, sums, windows, pixel, v_image, v_alpha);
}

int64_t window_blocks(const LossImages& im) { return im.ssim_share > 0 ? ceil_div(3 * im.num_windows(), kThreads) : 0; }

}  // namespace

int64_t image_losses_blocks(const LossImages& images) {
  return window_blocks(images) + ceil_div(images.num_pixels(), kThreads);
}

void launch_image_losses(const LossImages& images, int64_t blocks, WindowGradient* windows, float* partials, float* sums,
                         float* terms, float* v_image, float* v_alpha, int device) {
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  sums_kernel<<<(unsigned)blocks, kThreads, 0, stream>>>(images, window_blocks(images), windows, partials);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  finish_kernel<<<1, kFinishThreads, 0, stream>>>(images, partials, (int)blocks, sums, terms);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  gradients_kernel<<<(unsigned)ceil_div(images.num_pixels(), kThreads), kThreads, 0, stream>>>(images, sums, windows,
                                                                                               v_image, v_alpha);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace panoptic_mapper
