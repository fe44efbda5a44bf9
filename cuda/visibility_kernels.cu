// What a camera may see, on CUDA devices: a thread for each point.

#include "visibility.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "device_errors.h"

namespace panoptic_mapper {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t threads) { return (unsigned)((threads + kThreads - 1) / kThreads); }

__global__ void frustum_kernel(Frustum frustum, bool* mask) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i < frustum.num_means) mask[i] = is_candidate(frustum, i);
}

__global__ void prepare_kernel(Ellipsoids e, float* prepared, bool* meets) {
  const int64_t q = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (q < e.num_queries) meets[q] = prepare_ellipsoid(e, q, prepared + q * kEllipsoidFloats);
}

__global__ void holding_kernel(Ellipsoids e, const float* prepared, const bool* meets, volatile bool* found,
                               int32_t* error) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= e.num_rows) return;
  const int64_t row = e.rows[i];
  if (row < 0 || row >= e.num_means) {
    *reinterpret_cast<volatile int32_t*>(error) = kRowError;
    return;
  }
  const float* at = e.means + row * e.mean_stride;
  const float point[3] = {at[0], at[1], at[2]};
  for (int64_t q = 0; q < e.num_queries; ++q) {
    if (!meets[q] || found[q]) continue;  // all that ever is written is true: which thread does it does not matter
    if (holds(prepared + q * kEllipsoidFloats, point, e.chi2)) found[q] = true;
  }
}

}  // namespace

void launch_frustum_mask(const Frustum& frustum, bool* mask, int device) {
  if (frustum.num_means == 0) return;
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  frustum_kernel<<<blocks_for(frustum.num_means), kThreads, 0, stream>>>(frustum, mask);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_holding_mask(const Ellipsoids& e, float* prepared, bool* meets, bool* found, int device) {
  if (e.num_queries == 0 || e.num_rows == 0) return;
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  prepare_kernel<<<blocks_for(e.num_queries), kThreads, 0, stream>>>(e, prepared, meets);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  holding_kernel<<<blocks_for(e.num_rows), kThreads, 0, stream>>>(e, prepared, meets, found, device_error_word());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace panoptic_mapper
