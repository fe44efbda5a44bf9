// Turns what kernels have noted into exceptions; device_errors_kernels.cu holds the word itself.

#include "device_errors.h"

#include <c10/util/Exception.h>

namespace panoptic_mapper {

void raise_device_errors() {
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  volatile int32_t* word = device_error_word();
  const int32_t error = *word;
  if (error == kNoError) return;
  *word = kNoError;
  TORCH_CHECK_INDEX(error != kVisibleError,
                    "visible: expected strictly ascending rows of features; found otherwise by an earlier CUDA call");
  TORCH_CHECK_VALUE(error != kStuffError,
                    "num_stuff: expected the number of classes that are no things; found otherwise by an earlier CUDA"
                    " call");
  TORCH_CHECK_INDEX(error != kRowError, "ids: expected rows of values; found others by an earlier CUDA call");
#endif
}

}  // namespace panoptic_mapper
