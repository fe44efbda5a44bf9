// Errors that a CUDA kernel finds in the values of its arguments, such as an index outside of its table.
//
// Asking the device for them after each call would stall the stream, and is impossible while a graph is captured.
// So the kernels leave such values alone (nothing is read or written outside of a tensor; the rows concerned become
// NaN) and note the error in a word of pinned host memory, which costs nothing where there is none. The word is read,
// again without waiting, when the next operator is called, and by `raise_device_errors()`: call that one after a
// synchronisation to learn of everything that was launched before it. Reading an error clears it.
#pragma once

#include <cstdint>

namespace panoptic_mapper {

enum DeviceError : int32_t { kNoError = 0, kVisibleError = 1, kStuffError = 2, kRowError = 3 };

// Throws c10::IndexError or c10::ValueError for what kernels have noted; does nothing in a build without CUDA.
void raise_device_errors();

// Where kernels on any device write their error. Safe while a stream is captured.
int32_t* device_error_word();

}  // namespace panoptic_mapper
