#include "tensor_checks.h"

namespace panoptic_mapper {

std::string sizes_text(at::IntArrayRef sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

void check_on(const at::Tensor& t, const char* name, at::Device device, at::ScalarType dtype, at::IntArrayRef sizes) {
  const std::string expected = std::string(name) + ": expected ";
  TORCH_CHECK(t.defined(), expected + "a tensor on " + device.str() + ", got none");
  TORCH_CHECK(t.device() == device, expected + "a tensor on " + device.str() + ", got " + t.device().str());
  TORCH_CHECK(t.scalar_type() == dtype, expected + c10::toString(dtype) + ", got " + c10::toString(t.scalar_type()));
  bool fits = t.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t i = 0; fits && i < t.dim(); ++i) fits = sizes[i] < 0 || t.size(i) == sizes[i];
  TORCH_CHECK(fits, expected + "sizes " + sizes_text(sizes) + " (-1 is free), got " + sizes_text(t.sizes()));
}

at::Tensor packed(const at::Tensor& t) {
  const at::Tensor contiguous = t.contiguous();
  const bool is_aligned = reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 == 0;
  return is_aligned ? contiguous : contiguous.clone(at::MemoryFormat::Contiguous);
}

}  // namespace panoptic_mapper
