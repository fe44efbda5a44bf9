// Argument checks of the operators that run on the CPU and on CUDA devices.
#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace panoptic_mapper {

// Checks device, dtype and sizes; a size of -1 is free.
void check_on(const at::Tensor& t, const char* name, at::Device device, at::ScalarType dtype, at::IntArrayRef sizes);

// "[2, 3]". Messages are put together from strings, not by a stream: torch's libraries carry parts of another
// libstdc++, which streams of this library may pick up.
std::string sizes_text(at::IntArrayRef sizes);

// The same values, contiguous and on a boundary of 16 bytes, as vector loads need them; a copy only where needed.
at::Tensor packed(const at::Tensor& t);

}  // namespace panoptic_mapper
