// Rows of a table of parameters on CUDA devices: a thread for each element, so that rows are read and written in lines.

#include "map_rows.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "device_errors.h"

namespace panoptic_mapper {
namespace {

constexpr int kThreads = 256;

int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

__device__ bool is_row(int64_t row, int64_t num_rows, int32_t* error) {
  const bool is_inside = row >= 0 && row < num_rows;
  if (!is_inside) *reinterpret_cast<volatile int32_t*>(error) = kRowError;
  return is_inside;
}

__global__ void gather_kernel(const float* values, const int64_t* ids, int64_t num_rows, int64_t num_ids,
                              Columns columns, int32_t* error) {
  const int64_t element = (int64_t)blockIdx.x * kThreads + threadIdx.x, i = element / columns.width;
  if (i >= num_ids) return;
  const int d = (int)(element - i * columns.width);
  const int64_t row = ids[i];
  *columns.at(i, d) = is_row(row, num_rows, error) ? values[row * columns.width + d] : __int_as_float(0x7fc00000);
}

// The other kernel's threads read what one thread of each row counts here.
__global__ void count_kernel(AdamRows a, int32_t* error) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= a.num_ids || (a.which != nullptr && !a.which[i])) return;
  if (is_row(a.ids[i], a.num_rows, error)) a.steps[a.ids[i]] += 1;
}

__global__ void adam_kernel(AdamRows a, Columns gradients) {
  const int64_t element = (int64_t)blockIdx.x * kThreads + threadIdx.x, i = element / gradients.width;
  if (i >= a.num_ids || (a.which != nullptr && !a.which[i])) return;
  const int d = (int)(element - i * gradients.width);
  const int64_t row = a.ids[i];
  const float* gradient = gradients.at(i, d);
  if (gradient == nullptr || row < 0 || row >= a.num_rows) return;
  adam_element(a, gradients.width, row, d, a.steps[row], *gradient);
}

}  // namespace

void launch_gather_columns(const float* values, const int64_t* ids, int64_t num_rows, int64_t num_ids,
                           const Columns& columns, int device) {
  const int64_t threads = num_ids * columns.width;
  if (threads == 0) return;
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  gather_kernel<<<(unsigned)blocks_for(threads), kThreads, 0, stream>>>(values, ids, num_rows, num_ids, columns,
                                                                        device_error_word());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_adam_rows(const AdamRows& rows, const Columns& gradients, int device) {
  if (rows.num_ids == 0) return;
  const c10::cuda::CUDAGuard guard((c10::DeviceIndex)device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  count_kernel<<<(unsigned)blocks_for(rows.num_ids), kThreads, 0, stream>>>(rows, device_error_word());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (gradients.width == 0) return;
  adam_kernel<<<(unsigned)blocks_for(rows.num_ids * gradients.width), kThreads, 0, stream>>>(rows, gradients);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace panoptic_mapper
