// Argument checks of the operators that run on the CPU and on CUDA devices.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace panoptic_mapper {

// Checks device, dtype and sizes; a size of -1 is free.
inline void check_on(const at::Tensor& t, const char* name, at::Device device, at::ScalarType dtype,
                     at::IntArrayRef sizes) {
  TORCH_CHECK(t.defined() && t.device() == device, name, ": expected a tensor on ", device, ", got ", t.device());
  TORCH_CHECK(t.scalar_type() == dtype, name, ": expected ", dtype, ", got ", t.scalar_type());
  bool fits = t.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t i = 0; fits && i < t.dim(); ++i) fits = sizes[i] < 0 || t.size(i) == sizes[i];
  TORCH_CHECK(fits, name, ": expected sizes ", sizes, " (-1 is free), got ", t.sizes());
}

// The same values, contiguous and on a boundary of 16 bytes, as vector loads need them; a copy only where needed.
inline at::Tensor packed(const at::Tensor& t) {
  const at::Tensor contiguous = t.contiguous();
  const bool is_aligned = reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 == 0;
  return is_aligned ? contiguous : contiguous.clone(at::MemoryFormat::Contiguous);
}

}  // namespace panoptic_mapper
