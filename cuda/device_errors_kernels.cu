// The word of pinned memory, mapped on every device, that kernels write their errors to.

#include "device_errors.h"

#include <c10/cuda/CUDAException.h>
#include <cuda_runtime.h>

namespace panoptic_mapper {
namespace {

int32_t* allocate_word() {
  // Allocating is not allowed while this thread captures a graph in the default mode, though it is harmless.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  C10_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
  void* word = nullptr;
  const cudaError_t status = cudaHostAlloc(&word, sizeof(int32_t), cudaHostAllocPortable | cudaHostAllocMapped);
  C10_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
  C10_CUDA_CHECK(status);
  *static_cast<int32_t*>(word) = kNoError;
  return static_cast<int32_t*>(word);  // with unified addressing the host's address is every device's
}

}  // namespace

int32_t* device_error_word() {
  static int32_t* const word = allocate_word();  // never freed: kernels may outlive static objects
  return word;
}

}  // namespace panoptic_mapper
