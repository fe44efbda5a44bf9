// Whitening matrices on CUDA devices: a thread for each.

#include "whitening.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace panoptic_mapper {
namespace {

constexpr int kThreads = 64;

__global__ void forward_kernel(const float* quats, const float* log_scales, float* whitenings, int64_t Q) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i < Q) whitening_matrix(quats + 4 * i, log_scales + 3 * i, whitenings + 9 * i);
}

__global__ void backward_kernel(const float* v_whitenings, const float* quats, const float* log_scales, float* v_quats,
                                float* v_log_scales, int64_t Q) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= Q) return;
  whitening_matrix_backward(quats + 4 * i, log_scales + 3 * i, v_whitenings + 9 * i, v_quats + 4 * i,
                            v_log_scales + 3 * i);
}

unsigned blocks_for(int64_t Q) { return (unsigned)((Q + kThreads - 1) / kThreads); }

}  // namespace

void launch_whitening_matrices(const float* quats, const float* log_scales, float* whitenings, int64_t Q, int device) {
  if (Q == 0) return;
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  forward_kernel<<<blocks_for(Q), kThreads, 0, stream>>>(quats, log_scales, whitenings, Q);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_whitening_matrices_backward(const float* v_whitenings, const float* quats, const float* log_scales,
                                        float* v_quats, float* v_log_scales, int64_t Q, int device) {
  if (Q == 0) return;
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  backward_kernel<<<blocks_for(Q), kThreads, 0, stream>>>(v_whitenings, quats, log_scales, v_quats, v_log_scales, Q);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace panoptic_mapper
