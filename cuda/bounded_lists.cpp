// Lists of bounded size: checks, the CPU implementation, and the hand-over to the CUDA kernels.

#include "bounded_lists.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <ATen/Functions.h>

#include "tensor_checks.h"

namespace panoptic_mapper {
namespace {

using at::Tensor;

uint32_t bits_of(float depth) {
  uint32_t bits;
  std::memcpy(&bits, &depth, sizeof(bits));
  return bits;
}

void list_on_cpu(const BoundedLists& lists, int32_t* offsets, int32_t* gaussians, int64_t* count) {
  struct Entry {
    int64_t key;
    int32_t gaussian;
  };
  std::vector<Entry> entries;
  *count = 0;
  for (int64_t g = 0; g < lists.num_gaussians; ++g) {
    const TileRange range = lists.tiles_of(g);
    *count += range.count();
    for (int y = range.first_y; y < range.last_y; ++y) {
      for (int x = range.first_x; x < range.last_x && (int64_t)entries.size() < lists.capacity; ++x) {
        entries.push_back({lists.key(y * lists.tiles_x + x, bits_of(lists.depths[g])), (int32_t)g});
      }
    }
  }
  for (int64_t place = entries.size(); place < lists.capacity; ++place) entries.push_back({lists.spare_key(place), 0});
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.key < b.key; });
  int64_t i = 0;
  for (int tile = 0; tile < lists.num_tiles() + lists.tiles_x; ++tile) {
    while (i < lists.capacity && (entries[i].key >> 32) < tile) ++i;
    offsets[tile] = (int32_t)i;
  }
  for (int64_t place = 0; place < lists.capacity; ++place) gaussians[place] = entries[place].gaussian;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> list_tiles(const Tensor& means2d, const Tensor& radii, const Tensor& depths,
                                              int64_t width, int64_t height, int64_t capacity) {
  const at::Device device = means2d.device();
  check_on(means2d, "means2d", device, at::kFloat, {-1, 2});
  const int64_t V = means2d.size(0);
  check_on(radii, "radii", device, at::kInt, {V, 2});
  check_on(depths, "depths", device, at::kFloat, {V});
  TORCH_CHECK_VALUE(width > 0 && height > 0, "width, height: expected at least 1, got " + std::to_string(width) + ", " +
                                                 std::to_string(height));
  TORCH_CHECK_VALUE(capacity > 0 && capacity <= std::numeric_limits<int32_t>::max(),
                    "capacity: expected 1..2^31 - 1, got " + std::to_string(capacity));
  const Tensor means = means2d.contiguous(), sizes = radii.contiguous(), z = depths.contiguous();
  const int tiles_x = (int)((width + kListTile - 1) / kListTile), tiles_y = (int)((height + kListTile - 1) / kListTile);
  const BoundedLists lists{means.const_data_ptr<float>(), z.const_data_ptr<float>(), sizes.const_data_ptr<int32_t>(), V,
                           capacity, tiles_x, tiles_y};
  const auto ints = sizes.options(), longs = sizes.options().dtype(at::kLong);
  const Tensor offsets = at::empty({1, tiles_y + 1, tiles_x}, ints);
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (means.is_cuda()) {
    const int index = means.get_device();
    const Tensor counts = at::zeros({V + 1}, ints);  // the first is 0: there may be no Gaussian
    launch_count_tiles(lists, counts.data_ptr<int32_t>() + 1, index);
    const Tensor ends = at::cumsum(counts, 0);
    const Tensor keys = at::empty({capacity}, longs), listed = at::empty({capacity}, ints);
    launch_list_tiles(lists, ends.const_data_ptr<int64_t>() + 1, keys.data_ptr<int64_t>(), listed.data_ptr<int32_t>(), index);
    const auto [sorted_keys, order] = at::sort(keys, std::optional<bool>(true), /*dim=*/0, /*descending=*/false);
    launch_tile_offsets(lists, sorted_keys.const_data_ptr<int64_t>(), offsets.data_ptr<int32_t>(), index);
    return {offsets, listed.index_select(0, order), ends.narrow(0, V, 1).clone()};
  }
#endif
  const Tensor gaussians = at::empty({capacity}, ints), count = at::empty({1}, longs);
  list_on_cpu(lists, offsets.data_ptr<int32_t>(), gaussians.data_ptr<int32_t>(), count.data_ptr<int64_t>());
  return {offsets, gaussians, count};
}

}  // namespace panoptic_mapper
