// The inner loops, compiled once per instruction set, and the choice among them.

#include "tile_kernels.h"

#include <cstdlib>
#include <cstring>

namespace panoptic_mapper {
namespace {

namespace baseline {
#include "rasterize_tile.inc"
}
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PM_X86_KERNELS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "rasterize_tile.inc"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,prefer-vector-width=512")
namespace avx512 {
#include "rasterize_tile.inc"
}
#pragma GCC pop_options
#endif

// The best kernels that this machine runs. For tests, PANOPTIC_MAPPER_INSTRUCTION_SET=baseline or avx2 asks for less.
const TileKernels& pick_kernels() {
#ifdef PM_X86_KERNELS
  const char* wish = std::getenv("PANOPTIC_MAPPER_INSTRUCTION_SET");
  if (wish != nullptr && std::strcmp(wish, "baseline") == 0) return baseline::kKernels;
  const bool at_most_avx2 = wish != nullptr && std::strcmp(wish, "avx2") == 0;
  __builtin_cpu_init();
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (has_avx512 && !at_most_avx2) return avx512::kKernels;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kKernels;
#endif
  return baseline::kKernels;
}

}  // namespace

const TileKernels& kernels() {
  static const TileKernels& picked = pick_kernels();
  return picked;
}

}  // namespace panoptic_mapper
