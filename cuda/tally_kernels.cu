// Tallies on CUDA devices: a block for each tile, as gsplat splats it. The pixels of a warp that name the same columns add
// up what they have of a Gaussian before one of them writes it; most often these are all of its pixels.

#include "tally.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace panoptic_mapper {
namespace {

constexpr int kTileSide = 16, kThreads = kTileSide * kTileSide;
constexpr float kLeastAlpha = 1.0f / 255.0f, kMostAlpha = 0.999f, kLeastTransmittance = 1e-4f;  // as in rasterize.h
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// The lanes of a warp by the columns that their pixels name.
struct Groups {
  unsigned members;  // of this lane's group
  unsigned leaders;  // a lane of each group that names any

  __device__ Groups(int a, int b) {
    members = __match_any_sync(kAllLanes, a) & __match_any_sync(kAllLanes, b);
    const bool is_leader = (a >= 0 || b >= 0) && (int)(threadIdx.x % 32) == __ffs(members) - 1;
    leaders = __ballot_sync(kAllLanes, is_leader);
  }

  // Adds what the lanes have of a Gaussian, w of each, to its row. For all lanes together.
  __device__ void add(const TallyImages& im, int a, int b, float weight, float w, float* row) const {
    const unsigned drawn = __ballot_sync(kAllLanes, w > 0);
    const int lane = threadIdx.x % 32;
    for (unsigned rest = leaders; rest != 0; rest &= rest - 1) {
      const int leader = __ffs(rest) - 1;
      const unsigned group = __shfl_sync(kAllLanes, members, leader);
      if ((group & drawn) == 0) continue;
      const float own = group >> lane & 1 ? w : 0.0f;
      const float plain = warp_sum(own), weighted = warp_sum(own * weight);
      if (lane == leader) {
        im.add(a, b, weighted, plain, [row](int column, float value) { atomicAdd(row + column, value); });
      }
    }
  }
};

__global__ void __launch_bounds__(kThreads) tally_kernel(TallySplats s, TallyImages im, float* table) {
  __shared__ int ids[kThreads];
  __shared__ float3 centers[kThreads], conics[kThreads];  // centers: with the opacity
  const int tile = blockIdx.x;
  const int y = tile / s.tiles_x * kTileSide + threadIdx.x / kTileSide;
  const int x = tile % s.tiles_x * kTileSide + threadIdx.x % kTileSide;
  const bool is_inside = y < im.height && x < im.width;
  const int64_t pixel = (int64_t)y * im.width + x;
  const int a = is_inside ? im.a_of(pixel) : -1, b = is_inside ? im.b_of(pixel) : -1;
  bool is_done = a < 0 && b < 0;
  if (__syncthreads_and(is_done)) return;
  const float weight = is_done ? 0.0f : im.weights[pixel];
  const Groups groups(a, b);
  groups.add(im, a, b, weight, is_done ? 0.0f : 1.0f, table + s.num_gaussians * im.num_columns());
  const float px = (float)x + 0.5f, py = (float)y + 0.5f;
  float transmittance = 1;
  const int64_t end = s.end(tile);
  for (int64_t first = s.begin(tile); first < end; first += kThreads) {
    if (__syncthreads_and(is_done)) break;
    if (first + threadIdx.x < end) {
      const int g = s.isect_gaussians[first + threadIdx.x];
      ids[threadIdx.x] = g;
      centers[threadIdx.x] = make_float3(s.means2d[2 * g], s.means2d[2 * g + 1], s.opacities[g]);
      conics[threadIdx.x] = make_float3(s.conics[3 * g], s.conics[3 * g + 1], s.conics[3 * g + 2]);
    }
    __syncthreads();
    const int count = end - first < kThreads ? (int)(end - first) : kThreads;
    for (int i = 0; i < count; ++i) {
      if (__all_sync(kAllLanes, is_done)) break;
      const float3 center = centers[i], conic = conics[i];
      const float dx = center.x - px, dy = center.y - py;
      const float sigma = 0.5f * (conic.x * dx * dx + conic.z * dy * dy) + conic.y * dx * dy;
      const float alpha = fminf(kMostAlpha, center.z * __expf(-sigma));
      float w = 0;
      if (!is_done && sigma >= 0 && alpha >= kLeastAlpha) {
        const float next = transmittance * (1 - alpha);
        is_done = next <= kLeastTransmittance;
        if (!is_done) w = alpha * transmittance, transmittance = next;
      }
      groups.add(im, a, b, weight, w, table + (int64_t)ids[i] * im.num_columns());
    }
  }
}

}  // namespace

void launch_tally(const TallySplats& splats, const TallyImages& images, float* table, int device) {
  if (splats.num_tiles == 0) return;
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  tally_kernel<<<(unsigned)splats.num_tiles, kThreads, 0, stream>>>(splats, images, table);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace panoptic_mapper
