// Lists of bounded size on CUDA devices: a thread for each Gaussian, or for each entry.

#include "bounded_lists.h"

#include <algorithm>

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace panoptic_mapper {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t threads) { return (unsigned)((threads + kThreads - 1) / kThreads); }

__global__ void count_kernel(BoundedLists lists, int32_t* counts) {
  const int64_t g = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (g < lists.num_gaussians) counts[g] = lists.tiles_of(g).count();
}

// Threads beyond the Gaussians only fill what is left of the capacity.
__global__ void list_kernel(BoundedLists lists, const int64_t* ends, int64_t* keys, int32_t* gaussians) {
  const int64_t thread = (int64_t)blockIdx.x * kThreads + threadIdx.x, step = (int64_t)gridDim.x * kThreads;
  if (thread < lists.num_gaussians) {
    const TileRange range = lists.tiles_of(thread);
    int64_t place = ends[thread] - range.count();
    for (int y = range.first_y; y < range.last_y; ++y) {
      for (int x = range.first_x; x < range.last_x && place < lists.capacity; ++x, ++place) {
        keys[place] = lists.key(y * lists.tiles_x + x, __float_as_uint(lists.depths[thread]));
        gaussians[place] = (int32_t)thread;
      }
    }
  }
  const int64_t total = ends[lists.num_gaussians - 1];  // the entry before the first is 0
  for (int64_t place = total + thread; place < lists.capacity; place += step) {
    keys[place] = lists.spare_key(place), gaussians[place] = 0;
  }
}

__global__ void offsets_kernel(BoundedLists lists, const int64_t* sorted_keys, int32_t* offsets) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= lists.capacity) return;
  const int tile = (int)(sorted_keys[i] >> 32), before = i == 0 ? -1 : (int)(sorted_keys[i - 1] >> 32);
  for (int t = before + 1; t <= tile; ++t) offsets[t] = (int32_t)i;
  if (i + 1 < lists.capacity) return;
  for (int t = tile + 1; t < lists.num_tiles() + lists.tiles_x; ++t) offsets[t] = (int32_t)lists.capacity;
}

}  // namespace

void launch_count_tiles(const BoundedLists& lists, int32_t* counts, int device) {
  if (lists.num_gaussians == 0) return;
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  count_kernel<<<blocks_for(lists.num_gaussians), kThreads, 0, c10::cuda::getCurrentCUDAStream().stream()>>>(lists, counts);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_list_tiles(const BoundedLists& lists, const int64_t* ends, int64_t* keys, int32_t* gaussians, int device) {
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const unsigned blocks = std::max(blocks_for(lists.num_gaussians), std::min(blocks_for(lists.capacity), 512u));
  list_kernel<<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream().stream()>>>(lists, ends, keys, gaussians);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_tile_offsets(const BoundedLists& lists, const int64_t* sorted_keys, int32_t* offsets, int device) {
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  offsets_kernel<<<blocks_for(lists.capacity), kThreads, 0, c10::cuda::getCurrentCUDAStream().stream()>>>(lists, sorted_keys,
                                                                                                          offsets);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace panoptic_mapper
