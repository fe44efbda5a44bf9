// Label warping on CUDA devices. A warp finds the targets of 32 pixels, one per lane, then walks through them with its
// lanes along the channels, so that both distributions are read, and the gradient is written, in whole lines.

#include "label_warp.h"

#include <algorithm>

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace panoptic_mapper {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kInFlight = 4;  // pixels whose loads a lane has under way at once
constexpr int kBlocksPerMultiprocessor = 8;
constexpr unsigned kAllLanes = 0xffffffffu;

template <int kVec>
struct Channels {  // kVec neighbouring channels of a pixel
  float values[kVec];
};

template <int kVec>
__device__ Channels<kVec> load(const float* from) {
  Channels<kVec> c;
  if constexpr (kVec == 4) {
    const float4 v = __ldg(reinterpret_cast<const float4*>(from));
    c.values[0] = v.x, c.values[1] = v.y, c.values[2] = v.z, c.values[3] = v.w;
  } else {
    c.values[0] = __ldg(from);
  }
  return c;
}

template <int kVec>
__device__ void store(float* to, const Channels<kVec>& c) {
  if constexpr (kVec == 4) {
    *reinterpret_cast<float4*>(to) = make_float4(c.values[0], c.values[1], c.values[2], c.values[3]);
  } else {
    *to = c.values[0];
  }
}

// Calls use(pixel, k, p, q, is_kept) for all channels of all pixels, kVec channels at a time. What is not kept has p
// and q of 0; without `with_dropped` it may be left out. `lanes`: how many a pixel gets, a power of 2.
template <int kVec, bool with_dropped, typename Use>
__device__ void for_each_channel(const WarpImages& w, int lanes, const Use& use) {
  const WarpCamera camera(w);
  const int lane = threadIdx.x % 32, sub = lane / lanes, at_once = 32 / lanes;
  const int64_t num_pixels = w.height * w.width, step = (int64_t)gridDim.x * kThreads;
  const int first_channel = lane % lanes * kVec, channel_step = lanes * kVec;
  for (int64_t base = ((int64_t)blockIdx.x * kWarps + threadIdx.x / 32) * 32; base < num_pixels; base += step) {
    int64_t source = 0, target = -1;
    if (base + lane < num_pixels) {
      const int64_t row = (base + lane) / w.width, column = (base + lane) - row * w.width;
      source = row * w.p_row + column * w.p_column;
      target = find_target(w, camera, row, column);
    }
    if (!with_dropped && __all_sync(kAllLanes, target < 0)) continue;
    for (int round = 0; round < lanes; round += kInFlight) {
      int64_t p_at[kInFlight], q_at[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int of = (round + i) * at_once + sub;  // may pass 31 where fewer lanes than kInFlight share a pixel
        p_at[i] = __shfl_sync(kAllLanes, source, of & 31);
        q_at[i] = __shfl_sync(kAllLanes, target, of & 31);
        if (of > 31) q_at[i] = -1;
      }
      for (int64_t k = first_channel; k < w.channels; k += channel_step) {
        Channels<kVec> p[kInFlight] = {}, q[kInFlight] = {};
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
          if (q_at[i] < 0) continue;
          p[i] = load<kVec>(w.probabilities + p_at[i] + k);
          q[i] = load<kVec>(w.targets + q_at[i] + k);
        }
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
          const int of = (round + i) * at_once + sub;
          if (with_dropped ? of < 32 && base + of < num_pixels : q_at[i] >= 0) use(base + of, k, p[i], q[i]);
        }
      }
    }
  }
}

__device__ double2 warp_sum(double2 v) {
  for (int offset = 16; offset > 0; offset /= 2) {
    v.x += __shfl_xor_sync(kAllLanes, v.x, offset);
    v.y += __shfl_xor_sync(kAllLanes, v.y, offset);
  }
  return v;
}

// The sum over a block, in thread 0.
__device__ double2 block_sum(double2 v) {
  __shared__ double2 warps[kWarps];
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads();
  double2 total = make_double2(0, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kWarps; ++i) total.x += warps[i].x, total.y += warps[i].y;
  }
  return total;
}

template <int kVec>
__global__ void __launch_bounds__(kThreads) sum_kernel(WarpImages w, int lanes, double2* partials) {
  float log_sum = 0, weight_sum = 0;
  for_each_channel<kVec, false>(w, lanes, [&](int64_t, int64_t, const Channels<kVec>& p, const Channels<kVec>& q) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const float value = p.values[i] < 0.0f ? 0.0f : p.values[i];
      log_sum += q.values[i] != 0.0f ? q.values[i] * logf(value + kFloor) : 0.0f;
      weight_sum += q.values[i];
    }
  });
  const double2 total = block_sum(make_double2(log_sum, weight_sum));
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads) loss_kernel(const double2* partials, int64_t count, float* loss,
                                                        float* mass) {
  double2 sum = make_double2(0, 0);
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum.x += partials[i].x, sum.y += partials[i].y;
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  *loss = (float)(0.0 - sum.x / (sum.y < 1.0 ? 1.0 : sum.y));
  *mass = (float)sum.y;
}

template <int kVec>
__global__ void __launch_bounds__(kThreads) gradient_kernel(WarpImages w, int lanes, const float* v_loss,
                                                            const float* mass, float* v_probabilities) {
  const float scale = -*v_loss / (*mass < 1.0f ? 1.0f : *mass);
  for_each_channel<kVec, true>(
      w, lanes, [&](int64_t pixel, int64_t k, const Channels<kVec>& p, const Channels<kVec>& q) {
        Channels<kVec> v;
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          const bool has_gradient = q.values[i] != 0.0f && p.values[i] >= 0.0f;
          v.values[i] = has_gradient ? scale * q.values[i] / (p.values[i] + kFloor) : 0.0f;
        }
        store<kVec>(v_probabilities + pixel * w.channels + k, v);
      });
}

bool is_vectorised(const WarpImages& w) {
  const auto on_boundary = [](const float* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return w.channels % 4 == 0 && w.p_row % 4 == 0 && w.p_column % 4 == 0 && w.q_row % 4 == 0 && w.q_column % 4 == 0 &&
         on_boundary(w.probabilities) && on_boundary(w.targets);
}

int lanes_per_pixel(int64_t channels, int vec) {
  int lanes = 1;
  while (lanes < 32 && (int64_t)lanes * vec < channels) lanes *= 2;
  return lanes;
}

}  // namespace

int64_t label_warp_blocks(int64_t num_pixels, int device) {
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const int64_t most = (int64_t)multiprocessors * kBlocksPerMultiprocessor;
  return std::clamp<int64_t>((num_pixels + kThreads - 1) / kThreads, 1, most);
}

void launch_label_warp(const WarpImages& images, double* partials, float* loss, float* mass, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t blocks = label_warp_blocks(images.height * images.width, device);
  auto* sums = reinterpret_cast<double2*>(partials);
  if (is_vectorised(images)) {
    sum_kernel<4><<<(unsigned)blocks, kThreads, 0, stream>>>(images, lanes_per_pixel(images.channels, 4), sums);
  } else {
    sum_kernel<1><<<(unsigned)blocks, kThreads, 0, stream>>>(images, lanes_per_pixel(images.channels, 1), sums);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  loss_kernel<<<1, kThreads, 0, stream>>>(sums, blocks, loss, mass);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_label_warp_backward(const WarpImages& images, const float* v_loss, const float* mass,
                                float* v_probabilities, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t blocks = label_warp_blocks(images.height * images.width, device);
  if (is_vectorised(images)) {
    gradient_kernel<4><<<(unsigned)blocks, kThreads, 0, stream>>>(images, lanes_per_pixel(images.channels, 4), v_loss,
                                                                  mass, v_probabilities);
  } else {
    gradient_kernel<1><<<(unsigned)blocks, kThreads, 0, stream>>>(images, lanes_per_pixel(images.channels, 1), v_loss,
                                                                  mass, v_probabilities);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace panoptic_mapper
