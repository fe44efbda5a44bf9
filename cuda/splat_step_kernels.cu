// A step on what a rasteriser draws, on CUDA devices: half a warp for each row, so that rows are read and written in lines.

#include "splat_step.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "device_errors.h"

namespace panoptic_mapper {
namespace {

constexpr int kThreads = 256, kLanes = 16;
static_assert(kSplatWidth <= kLanes, "a lane for each element of a row");

int64_t blocks_for(int64_t rows) { return (rows * kLanes + kThreads - 1) / kThreads; }

__global__ void inputs_kernel(SplatInputs in, int32_t* error) {
  const int64_t i = ((int64_t)blockIdx.x * kThreads + threadIdx.x) / kLanes;
  const int d = threadIdx.x % kLanes;
  if (i >= in.num_ids || d >= kSplatWidth) return;
  const int64_t row = in.ids[i];
  const bool is_row = row >= 0 && row < in.num_rows;
  if (!is_row) *reinterpret_cast<volatile int32_t*>(error) = kRowError;
  write_splat_input(in, i, d, is_row ? in.values[row * kSplatWidth + d] : __int_as_float(0x7fc00000));
}

__global__ void step_kernel(SplatStep step, int32_t* error) {
  const int64_t i = ((int64_t)blockIdx.x * kThreads + threadIdx.x) / kLanes;
  const int d = threadIdx.x % kLanes;
  if (step.is_valid != nullptr && !*step.is_valid) return;
  const bool is_there = i < step.adam.num_ids && d < kSplatWidth;
  const int64_t row = is_there ? step.adam.ids[i] : -1;
  const bool is_row = row >= 0 && row < step.adam.num_rows;
  if (is_there && !is_row) *reinterpret_cast<volatile int32_t*>(error) = kRowError;
  const float t = is_row ? step.adam.steps[row] + 1 : 0;
  __syncwarp();  // all lanes of a row have read its number of steps
  if (!is_row) return;
  splat_element(step, i, row, d, t);
  if (d == 0 && step.features[i * step.num_features + kOnes] > step.least_weight) step.adam.steps[row] = t;
}

}  // namespace

void launch_splat_inputs(const SplatInputs& inputs, int device) {
  if (inputs.num_ids == 0) return;
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  inputs_kernel<<<(unsigned)blocks_for(inputs.num_ids), kThreads, 0, stream>>>(inputs, device_error_word());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_splat_step(const SplatStep& step, int device) {
  if (step.adam.num_ids == 0) return;
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  step_kernel<<<(unsigned)blocks_for(step.adam.num_ids), kThreads, 0, stream>>>(step, device_error_word());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace panoptic_mapper
