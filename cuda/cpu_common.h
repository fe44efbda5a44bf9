// Helpers shared by the CPU operators: argument checks and a deterministic parallel loop.
#pragma once

#include <atomic>
#include <cstdint>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace panoptic_mapper {

// Checks device, dtype, contiguity and sizes; a size of -1 is free.
inline void check_tensor(const at::Tensor& t, const char* name, at::ScalarType dtype, at::IntArrayRef sizes) {
  TORCH_CHECK(t.defined() && t.device().is_cpu(), name, ": expected a CPU tensor");
  TORCH_CHECK(t.scalar_type() == dtype, name, ": expected ", dtype, ", got ", t.scalar_type());
  TORCH_CHECK(t.is_contiguous(), name, ": expected a contiguous tensor");
  bool fits = t.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t i = 0; fits && i < t.dim(); ++i) fits = sizes[i] < 0 || t.size(i) == sizes[i];
  TORCH_CHECK(fits, name, ": expected sizes ", sizes, " (-1 is free), got ", t.sizes());
}

inline void check_float(const at::Tensor& t, const char* name, at::IntArrayRef sizes) {
  check_tensor(t, name, at::kFloat, sizes);
}

inline void check_image_size(int64_t width, int64_t height) {
  constexpr int64_t most = 1 << 15;
  TORCH_CHECK(width >= 1 && height >= 1 && width <= most && height <= most, "width, height: expected 1..", most,
              ", got ", width, "x", height);
}

// Calls f(i) for i in [0, n), in blocks that the threads take as they become free. Which thread runs an i is not
// fixed, so f(i) must write only what belongs to i.
template <typename F>
void parallel_dynamic(int64_t n, int64_t block, const F& f) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i; (i = next.fetch_add(block)) < n;) {
        for (int64_t j = i; j < std::min(i + block, n); ++j) f(j);
      }
    }
  });
}

}  // namespace panoptic_mapper
