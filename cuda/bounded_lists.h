// Which Gaussians each tile of an image shows, by depth, for gsplat's kernels (operator `list_tiles`), in memory of a size
// that is given: the host need not wait to learn how many there are, as it does in gsplat's own `isect_tiles`.
//
// Contract
//   * In: means2d [V, 2] px (the top-left pixel's centre is at (0.5, 0.5)), radii [V, 2] int32 px (none is listed where one of
//     them is 0), depths [V] m of at least 0. All on one device, CPU or CUDA.
//   * Out: offsets [1, tiles_y + 1, tiles_x] int32: where each tile begins in isect_gaussians [capacity] int32. A last row of
//     tiles, below the image, takes what is left of the capacity; its entries mean nothing. Tiles list what gsplat lists: by
//     depth, and where that is equal by row. count [1] int64: how many there are; where these are more than the capacity,
//     the lists are not complete.
//   * CUDA: current stream, no synchronisation. Results are bit-identical from run to run.
#pragma once

#include <cstdint>
#include <tuple>

#include <ATen/core/Tensor.h>

#include "device_code.h"

namespace panoptic_mapper {

constexpr int kListTile = 16;  // pixels

std::tuple<at::Tensor, at::Tensor, at::Tensor> list_tiles(const at::Tensor& means2d, const at::Tensor& radii,
                                                          const at::Tensor& depths, int64_t width, int64_t height,
                                                          int64_t capacity);

struct TileRange {  // last: exclusive
  int first_x, last_x, first_y, last_y;

  PM_DEVICE int count() const { return (last_x - first_x) * (last_y - first_y); }
};

struct BoundedLists {
  const float *means2d, *depths;
  const int32_t* radii;
  int64_t num_gaussians, capacity;
  int tiles_x, tiles_y;

  PM_DEVICE int num_tiles() const { return tiles_x * tiles_y; }  // of the image
  PM_DEVICE static int clamped(float x, int last) { return x <= 0 ? 0 : x >= (float)last ? last : (int)x; }
  PM_DEVICE TileRange tiles_of(int64_t g) const {
    const int rx = radii[2 * g], ry = radii[2 * g + 1];
    if (rx <= 0 || ry <= 0) return {0, 0, 0, 0};
    const float x = means2d[2 * g] / kListTile, y = means2d[2 * g + 1] / kListTile;
    const float reach_x = (float)rx / kListTile, reach_y = (float)ry / kListTile;
    return {clamped(floorf(x - reach_x), tiles_x), clamped(ceilf(x + reach_x), tiles_x),
            clamped(floorf(y - reach_y), tiles_y), clamped(ceilf(y + reach_y), tiles_y)};
  }
  PM_DEVICE int64_t key(int tile, uint32_t depth_bits) const { return (int64_t)tile << 32 | depth_bits; }
  PM_DEVICE int64_t spare_key(int64_t place) const { return key(num_tiles() + (int)(place % tiles_x), 0); }
};

// CUDA kernels (bounded_lists_kernels.cu). ends [V]: of each Gaussian's entries, the sum of the counts up to it.
void launch_count_tiles(const BoundedLists& lists, int32_t* counts, int device);
void launch_list_tiles(const BoundedLists& lists, const int64_t* ends, int64_t* keys, int32_t* gaussians, int device);
void launch_tile_offsets(const BoundedLists& lists, const int64_t* sorted_keys, int32_t* offsets, int device);

}  // namespace panoptic_mapper
