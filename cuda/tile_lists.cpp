// Sorts projected Gaussians into tiles and weighs the pairs that are drawn.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include <ATen/Functions.h>

#include "tile_kernels.h"

namespace panoptic_mapper {
namespace {

// Least value of (a dx^2 + 2 b dx dy + c dy^2) / 2 over a rectangle, for a positive definite form: 0 inside, else on
// the border, where each side is a parabola.
double least_sigma(double a, double b, double c, double x0, double x1, double y0, double y1) {
  if (x0 <= 0 && x1 >= 0 && y0 <= 0 && y1 >= 0) return 0;
  const auto sigma = [&](double x, double y) { return 0.5 * (a * x * x + c * y * y) + b * x * y; };
  const auto on_column = [&](double x) { return sigma(x, std::clamp(-b * x / c, y0, y1)); };
  const auto on_row = [&](double y) { return sigma(std::clamp(-b * y / a, x0, x1), y); };
  return std::min({on_column(x0), on_column(x1), on_row(y0), on_row(y1)});
}

// Appends the tiles that a Gaussian can touch with alpha >= kMinAlpha, in row-major order.
void append_tiles(const Splats& s, int64_t g, const Grid& grid, std::vector<int32_t>& tiles) {
  const double x = s.means2d[2 * g], y = s.means2d[2 * g + 1];
  const double rx = s.extents[2 * g] * 1.0001 + 0.01, ry = s.extents[2 * g + 1] * 1.0001 + 0.01;
  const auto tile_index = [](double pixel, int64_t count) {
    return (int64_t)std::clamp(std::floor(pixel / kTile), -1.0, (double)count);
  };
  // Pixels ceil(x - rx) .. floor(x + rx) are inside of the rectangle.
  const int64_t tx0 = std::max<int64_t>(0, tile_index(std::ceil(x - rx), grid.tiles_x));
  const int64_t tx1 = std::min(grid.tiles_x - 1, tile_index(std::floor(x + rx), grid.tiles_x));
  const int64_t ty0 = std::max<int64_t>(0, tile_index(std::ceil(y - ry), grid.tiles_y));
  const int64_t ty1 = std::min(grid.tiles_y - 1, tile_index(std::floor(y + ry), grid.tiles_y));
  const double a = s.conics[3 * g], b = s.conics[3 * g + 1], c = s.conics[3 * g + 2];
  const bool can_test = a > 0 && c > 0 && a * c > b * b && (tx1 > tx0 || ty1 > ty0);
  const double limit = std::log((double)s.opacities[g] / kMinAlpha);
  for (int64_t ty = ty0; ty <= ty1; ++ty) {
    for (int64_t tx = tx0; tx <= tx1; ++tx) {
      if (can_test) {
        const double x0 = tx * kTile - x, y0 = ty * kTile - y, x1 = x0 + kTile - 1, y1 = y0 + kTile - 1;
        // The kernel sums in float: allow for what may cancel between the terms.
        const double wx = std::max(std::abs(x0), std::abs(x1)), wy = std::max(std::abs(y0), std::abs(y1));
        const double slack = 1e-3 + 1e-6 * (a * wx * wx + c * wy * wy);
        if (least_sigma(a, b, c, x0, x1, y0, y1) > limit + slack) continue;
      }
      tiles.push_back((int32_t)(ty * grid.tiles_x + tx));
    }
  }
}

// Rows ordered by depth, ties by row: radix sort, stable. Positive floats sort as their bits do.
std::vector<int32_t> order_by_depth(const float* depths, int64_t count) {
  constexpr int kBits = 11, kBins = 1 << kBits;
  std::vector<uint32_t> keys(count), other_keys(count);
  std::vector<int32_t> rows(count), other_rows(count);
  std::iota(rows.begin(), rows.end(), 0);
  std::memcpy(keys.data(), depths, count * sizeof(float));
  for (int shift = 0; shift < 32; shift += kBits) {
    std::vector<int64_t> start(kBins + 1, 0);
    for (int64_t i = 0; i < count; ++i) ++start[((keys[i] >> shift) & (kBins - 1)) + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t to = start[(keys[i] >> shift) & (kBins - 1)]++;
      other_keys[to] = keys[i];
      other_rows[to] = rows[i];
    }
    keys.swap(other_keys);
    rows.swap(other_rows);
  }
  return rows;
}

struct TileLists {
  Tensor tile_offsets, isect_gaussians, slot_offsets, slot_isects;
};

TileLists sort_into_tiles(const Splats& s, const float* depths, int64_t V, const Grid& grid) {
  constexpr int64_t kBlock = 1024;
  const int64_t num_blocks = (V + kBlock - 1) / kBlock;
  std::vector<std::vector<int32_t>> tiles(num_blocks);
  const Tensor slot_offsets = at::zeros({V + 1}, at::kLong);
  int64_t* slots = slot_offsets.data_ptr<int64_t>();
  parallel_dynamic(num_blocks, 1, [&](int64_t block) {
    for (int64_t g = block * kBlock; g < std::min(V, (block + 1) * kBlock); ++g) {
      const size_t before = tiles[block].size();
      append_tiles(s, g, grid, tiles[block]);
      slots[g + 1] = (int64_t)(tiles[block].size() - before);
    }
  });
  std::partial_sum(slots, slots + V + 1, slots);
  const int64_t M = slots[V];
  TORCH_CHECK(M < INT32_MAX, "list_gaussians: too many intersections, ", M);
  const Tensor tile_offsets = at::zeros({grid.num_tiles + 1}, at::kLong);
  const Tensor isect_gaussians = at::empty({M}, at::kInt), slot_isects = at::empty({M}, at::kInt);
  int64_t* offsets = tile_offsets.data_ptr<int64_t>();
  for (const auto& block : tiles) {
    for (const int32_t tile : block) ++offsets[tile + 1];
  }
  std::partial_sum(offsets, offsets + grid.num_tiles + 1, offsets);
  std::vector<int64_t> cursor(offsets, offsets + grid.num_tiles);
  int32_t *gaussians = isect_gaussians.data_ptr<int32_t>(), *isects = slot_isects.data_ptr<int32_t>();
  for (const int32_t g : order_by_depth(depths, V)) {
    const int32_t* own = tiles[g / kBlock].data() - slots[g / kBlock * kBlock];
    for (int64_t slot = slots[g]; slot < slots[g + 1]; ++slot) {
      const int64_t e = cursor[own[slot]]++;
      gaussians[e] = g;
      isects[slot] = (int32_t)e;
    }
  }
  return {tile_offsets, isect_gaussians, slot_offsets, slot_isects};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> list_gaussians(
    const Tensor& means2d, const Tensor& depths, const Tensor& conics, const Tensor& extents, const Tensor& opacities,
    int64_t width, int64_t height) {
  check_splats(means2d, conics, extents, opacities);
  const int64_t V = means2d.size(0);
  check_float(depths, "depths", {V});
  check_image_size(width, height);
  const Grid grid(width, height);
  const Splats splats = splats_of(means2d, conics, extents, opacities);
  const TileLists lists = sort_into_tiles(splats, depths.const_data_ptr<float>(), V, grid);
  const int64_t M = lists.isect_gaussians.size(0);
  const int64_t* tile_offsets = lists.tile_offsets.const_data_ptr<int64_t>();
  const int32_t* gaussians = lists.isect_gaussians.const_data_ptr<int32_t>();

  const Tensor transmittance = at::empty({height, width}, at::kFloat), last = at::empty({height, width}, at::kInt);
  const Tensor pair_offsets = at::zeros({M + 1}, at::kLong);
  int64_t* ends = pair_offsets.data_ptr<int64_t>() + 1;  // of each tile's pairs at first, of all below
  std::vector<TilePairs> found(grid.num_tiles);
  parallel_dynamic(grid.num_tiles, 1, [&](int64_t tile) {
    alignas(64) float light[kTilePixels];
    alignas(64) int32_t position[kTilePixels];
    const int64_t count = tile_offsets[tile + 1] - tile_offsets[tile];
    kernels().weigh_tile(splats, gaussians + tile_offsets[tile], count, (float)grid.x(tile), (float)grid.y(tile),
                         grid.columns(tile), grid.rows(tile), found[tile], ends + tile_offsets[tile], light, position);
    write_tile(transmittance.data_ptr<float>(), grid, tile, light);
    write_tile(last.data_ptr<int32_t>(), grid, tile, position);
  });

  std::vector<int64_t> starts(grid.num_tiles + 1, 0);
  for (int64_t tile = 0; tile < grid.num_tiles; ++tile) starts[tile + 1] = starts[tile] + found[tile].size;
  const Tensor pair_pixels = at::empty({starts.back()}, at::kByte);
  const Tensor pair_weights = at::empty({starts.back()}, at::kFloat);
  uint8_t* pixels = pair_pixels.data_ptr<uint8_t>();
  float* weights = pair_weights.data_ptr<float>();
  parallel_dynamic(grid.num_tiles, 4, [&](int64_t tile) {
    const TilePairs& pairs = found[tile];
    for (int64_t e = tile_offsets[tile]; e < tile_offsets[tile + 1]; ++e) ends[e] += starts[tile];
    std::copy_n(pairs.pixels.get(), pairs.size, pixels + starts[tile]);
    std::copy_n(pairs.weights.get(), pairs.size, weights + starts[tile]);
  });
  return {lists.tile_offsets, lists.isect_gaussians, lists.slot_offsets, lists.slot_isects, pair_offsets,
          pair_pixels,        pair_weights,          transmittance,      last};
}

}  // namespace panoptic_mapper
