// Splatting through the lists of a view, and its gradients. The inner loops are in rasterize_tile.inc.

#include "rasterize.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "tally.h"
#include "tile_kernels.h"

namespace panoptic_mapper {
namespace {

void check_offsets(const Tensor& offsets, const char* name, int64_t count, int64_t total) {
  check_tensor(offsets, name, at::kLong, {count + 1});
  const int64_t* o = offsets.const_data_ptr<int64_t>();
  bool fits = o[0] == 0 && o[count] == total;
  for (int64_t i = 0; i < count; ++i) fits &= o[i] <= o[i + 1];
  TORCH_CHECK(fits, name, ": expected ascending offsets from 0 to ", total);
}

void check_indices(const Tensor& indices, const char* name, int64_t size, int64_t bound) {
  check_tensor(indices, name, at::kInt, {size});
  const int32_t* v = indices.const_data_ptr<int32_t>();
  bool fits = true;
  for (int64_t i = 0; i < size; ++i) fits &= v[i] >= 0 && v[i] < bound;
  TORCH_CHECK(fits, name, ": expected indices in 0..", bound - 1);
}

void check_tile_lists(const Tensor& tile_offsets, const Tensor& isect_gaussians, const Tensor& slot_offsets,
                      const Tensor& slot_isects, int64_t V, const Grid& grid) {
  const int64_t M = isect_gaussians.numel();
  check_indices(isect_gaussians, "isect_gaussians", M, V);
  check_offsets(tile_offsets, "tile_offsets", grid.num_tiles, M);
  check_offsets(slot_offsets, "slot_offsets", V, M);
  check_indices(slot_isects, "slot_isects", M, M);
}

// Checks the pairs too, and that none lies outside of the image where a tile does.
void check_pairs(const Tensor& tile_offsets, const Tensor& pair_offsets, const Tensor& pair_pixels,
                 const Tensor& pair_weights, int64_t M, const Grid& grid) {
  const int64_t P = pair_pixels.numel();
  check_tensor(pair_pixels, "pair_pixels", at::kByte, {P});
  check_float(pair_weights, "pair_weights", {P});
  check_offsets(pair_offsets, "pair_offsets", M, P);
  const int64_t *tiles = tile_offsets.const_data_ptr<int64_t>(), *pairs = pair_offsets.const_data_ptr<int64_t>();
  const uint8_t* pixels = pair_pixels.const_data_ptr<uint8_t>();
  bool fits = true;
  for (int64_t tile = 0; tile < grid.num_tiles; ++tile) {
    const int columns = grid.columns(tile), rows = grid.rows(tile);
    if (columns == kTile && rows == kTile) continue;
    for (int64_t p = pairs[tiles[tile]]; p < pairs[tiles[tile + 1]]; ++p) {
      fits &= pixels[p] % kTile < columns && pixels[p] / kTile < rows;
    }
  }
  TORCH_CHECK(fits, "pair_pixels: a pixel lies outside of the image");
}

Lists lists_of(const Tensor& tile_offsets, const Tensor& isect_gaussians, const Tensor& slot_offsets,
               const Tensor& slot_isects, const Tensor& pair_offsets, const Tensor& pair_pixels,
               const Tensor& pair_weights, const Grid& grid) {
  return {tile_offsets.const_data_ptr<int64_t>(),    slot_offsets.const_data_ptr<int64_t>(),
          pair_offsets.const_data_ptr<int64_t>(),    isect_gaussians.const_data_ptr<int32_t>(),
          slot_isects.const_data_ptr<int32_t>(),     nullptr,
          pair_pixels.const_data_ptr<uint8_t>(),     pair_weights.const_data_ptr<float>(),
          grid.width,                                grid.tiles_x};
}

std::vector<int32_t> tiles_of_isects(const Lists& lists, const Grid& grid, int64_t num_isects) {
  std::vector<int32_t> tiles(num_isects);
  for (int64_t tile = 0; tile < grid.num_tiles; ++tile) {
    std::fill(tiles.begin() + lists.tile_offsets[tile], tiles.begin() + lists.tile_offsets[tile + 1], (int32_t)tile);
  }
  return tiles;
}

constexpr int64_t kGroup = 64;  // channels that one pass over the pairs handles

struct FreeDeleter {
  void operator()(float* p) const { std::free(p); }
};
using AlignedFloats = std::unique_ptr<float, FreeDeleter>;

AlignedFloats aligned_floats(int64_t count) {  // on the vectors' boundary
  const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
  return AlignedFloats(static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))));
}

}  // namespace

Tensor blend(const Tensor& features, const Tensor& tile_offsets, const Tensor& isect_gaussians,
             const Tensor& slot_offsets, const Tensor& slot_isects, const Tensor& pair_offsets,
             const Tensor& pair_pixels, const Tensor& pair_weights, int64_t width, int64_t height) {
  check_float(features, "features", {-1, -1});
  check_image_size(width, height);
  const int64_t V = features.size(0), F = features.size(1);
  const Grid grid(width, height);
  check_tile_lists(tile_offsets, isect_gaussians, slot_offsets, slot_isects, V, grid);
  check_pairs(tile_offsets, pair_offsets, pair_pixels, pair_weights, isect_gaussians.size(0), grid);
  const Lists lists = lists_of(tile_offsets, isect_gaussians, slot_offsets, slot_isects, pair_offsets, pair_pixels,
                               pair_weights, grid);
  const Tensor image = at::empty({height, width, F}, features.options());
  const float* in = features.const_data_ptr<float>();
  float* out = image.data_ptr<float>();
  parallel_dynamic(grid.num_tiles, 1, [&](int64_t tile) {
    alignas(64) thread_local float acc[kTilePixels * kGroup];
    for (int64_t c = 0; c < F; c += kGroup) {
      const int64_t channels = std::min(kGroup, F - c), stride = (channels + 15) / 16 * 16;
      std::fill_n(acc, kTilePixels * stride, 0.0f);
      kernels().blend_tile(lists, lists.tile_offsets[tile], lists.tile_offsets[tile + 1], in + c, F, channels, acc);
      for (int row = 0; row < grid.rows(tile); ++row) {
        float* to = out + ((grid.y(tile) + row) * width + grid.x(tile)) * F + c;
        for (int column = 0; column < grid.columns(tile); ++column) {
          std::memcpy(to + column * F, acc + (kTile * row + column) * stride, channels * sizeof(float));
        }
      }
    }
  });
  return image;
}

Tensor blend_backward(const Tensor& v_image, const Tensor& tile_offsets, const Tensor& isect_gaussians,
                      const Tensor& slot_offsets, const Tensor& slot_isects, const Tensor& pair_offsets,
                      const Tensor& pair_pixels, const Tensor& pair_weights) {
  check_float(v_image, "v_image", {-1, -1, -1});
  const int64_t height = v_image.size(0), width = v_image.size(1), F = v_image.size(2);
  check_image_size(width, height);
  TORCH_CHECK(slot_offsets.dim() == 1 && slot_offsets.size(0) >= 1, "slot_offsets: expected [V + 1]");
  const int64_t V = slot_offsets.size(0) - 1;
  const Grid grid(width, height);
  check_tile_lists(tile_offsets, isect_gaussians, slot_offsets, slot_isects, V, grid);
  check_pairs(tile_offsets, pair_offsets, pair_pixels, pair_weights, isect_gaussians.size(0), grid);
  Lists lists = lists_of(tile_offsets, isect_gaussians, slot_offsets, slot_isects, pair_offsets, pair_pixels,
                         pair_weights, grid);
  const std::vector<int32_t> tile_of_isect = tiles_of_isects(lists, grid, isect_gaussians.size(0));
  lists.tile_of_isect = tile_of_isect.data();
  const Tensor v_features = at::zeros({V, F}, v_image.options());
  if (F == 0) return v_features;
  const PaddedImage image(v_image.const_data_ptr<float>(), width * height, F);
  float* out = v_features.data_ptr<float>();
  // Each Gaussian is summed where its first tile comes up: neighbours in the image are neighbours in time.
  parallel_dynamic(grid.num_tiles, 1, [&](int64_t tile) {
    for (int64_t e = lists.tile_offsets[tile]; e < lists.tile_offsets[tile + 1]; ++e) {
      const int64_t g = lists.isect_gaussians[e];
      if (lists.slot_offsets[g] == lists.slot_offsets[g + 1] || lists.slot_isects[lists.slot_offsets[g]] != e) continue;
      for (int64_t c = 0; c < F; c += kGroup) {
        kernels().gather_gaussian(lists, g, image, c, std::min(kGroup, F - c), out + g * F + c);
      }
    }
  });
  return v_features;
}

Tensor tally_pairs(const Tensor& tile_offsets, const Tensor& isect_gaussians, const Tensor& slot_offsets,
                   const Tensor& slot_isects, const Tensor& pair_offsets, const Tensor& pair_pixels,
                   const Tensor& pair_weights, const Tensor& a, const Tensor& b, const Tensor& weights, int64_t num_a,
                   int64_t num_b) {
  check_tensor(a, "a", at::kLong, {-1, -1});
  const int64_t height = a.size(0), width = a.size(1);
  check_image_size(width, height);
  check_tensor(b, "b", at::kLong, a.sizes());
  check_float(weights, "weights", a.sizes());
  TORCH_CHECK_VALUE(num_a >= 0 && num_b >= 0, "num_a, num_b: expected at least 0");
  TORCH_CHECK(slot_offsets.dim() == 1 && slot_offsets.size(0) >= 1, "slot_offsets: expected [V + 1]");
  const int64_t V = slot_offsets.size(0) - 1;
  const Grid grid(width, height);
  check_tile_lists(tile_offsets, isect_gaussians, slot_offsets, slot_isects, V, grid);
  check_pairs(tile_offsets, pair_offsets, pair_pixels, pair_weights, isect_gaussians.size(0), grid);
  const Lists lists = lists_of(tile_offsets, isect_gaussians, slot_offsets, slot_isects, pair_offsets, pair_pixels,
                               pair_weights, grid);
  const std::vector<int32_t> tile_of_isect = tiles_of_isects(lists, grid, isect_gaussians.size(0));
  const TallyImages images{a.const_data_ptr<int64_t>(), b.const_data_ptr<int64_t>(), weights.const_data_ptr<float>(),
                           height, width, (int)num_a, (int)num_b};
  const Tensor table = at::zeros({V + 1, images.num_columns()}, weights.options());
  float* out = table.data_ptr<float>();
  const auto add_pixel = [&](int64_t pixel, float w, float* row) {
    images.add(images.a_of(pixel), images.b_of(pixel), w * images.weights[pixel], w,
               [row](int column, float value) { row[column] += value; });
  };
  at::parallel_for(0, V, 256, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      for (int64_t slot = lists.slot_offsets[g]; slot < lists.slot_offsets[g + 1]; ++slot) {
        const int64_t e = lists.slot_isects[slot], origin = lists.tile_origin(tile_of_isect[e]);
        for (int64_t pair = lists.pair_offsets[e]; pair < lists.pair_offsets[e + 1]; ++pair) {
          const int64_t place = lists.pair_pixels[pair];
          add_pixel(origin + place / kTile * width + place % kTile, lists.pair_weights[pair], out + g * images.num_columns());
        }
      }
    }
  });
  for (int64_t pixel = 0; pixel < height * width; ++pixel) add_pixel(pixel, 1, out + V * images.num_columns());
  return table;
}

std::tuple<Tensor, Tensor> splat(const Tensor& means2d, const Tensor& conics, const Tensor& extents,
                                 const Tensor& opacities, const Tensor& features, const Tensor& tile_offsets,
                                 const Tensor& isect_gaussians, const Tensor& slot_offsets, const Tensor& slot_isects,
                                 const Tensor& pair_offsets, const Tensor& pair_pixels, const Tensor& pair_weights,
                                 const Tensor& transmittance, const Tensor& last) {
  check_splats(means2d, conics, extents, opacities);
  check_float(features, "features", {means2d.size(0), -1});
  check_float(transmittance, "transmittance", {-1, -1});
  check_tensor(last, "last", at::kInt, transmittance.sizes());
  const Tensor image = blend(features, tile_offsets, isect_gaussians, slot_offsets, slot_isects, pair_offsets,
                             pair_pixels, pair_weights, transmittance.size(1), transmittance.size(0));
  return {image, at::rsub(transmittance, 1.0)};
}

std::tuple<Tensor, Tensor, Tensor> splat_geometry_backward(
    const Tensor& v_image, const Tensor& v_alpha, const Tensor& means2d, const Tensor& conics, const Tensor& extents,
    const Tensor& opacities, const Tensor& features, const Tensor& tile_offsets, const Tensor& isect_gaussians,
    const Tensor& slot_offsets, const Tensor& slot_isects, const Tensor& transmittance, const Tensor& last) {
  check_splats(means2d, conics, extents, opacities);
  const int64_t V = means2d.size(0);
  check_float(features, "features", {V, -1});
  check_float(transmittance, "transmittance", {-1, -1});
  const int64_t height = transmittance.size(0), width = transmittance.size(1), F = features.size(1);
  check_image_size(width, height);
  check_tensor(last, "last", at::kInt, {height, width});
  check_float(v_image, "v_image", {height, width, F});
  check_float(v_alpha, "v_alpha", {height, width});
  const Grid grid(width, height);
  check_tile_lists(tile_offsets, isect_gaussians, slot_offsets, slot_isects, V, grid);
  const int64_t M = isect_gaussians.size(0);
  const Splats splats = splats_of(means2d, conics, extents, opacities);
  const int64_t* tiles = tile_offsets.const_data_ptr<int64_t>();
  const int32_t* gaussians = isect_gaussians.const_data_ptr<int32_t>();
  const float* upstream = v_image.const_data_ptr<float>();
  const auto moments = aligned_floats(6 * M);
  parallel_dynamic(grid.num_tiles, 1, [&](int64_t tile) {
    const int64_t begin = tiles[tile], count = tiles[tile + 1] - begin;
    if (count == 0) return;
    alignas(64) float light[kTilePixels];
    alignas(64) int32_t position[kTilePixels];
    read_tile(transmittance.const_data_ptr<float>(), grid, tile, 1.0f, light);
    read_tile(last.const_data_ptr<int32_t>(), grid, tile, -1, position);
    for (int32_t& p : position) p = std::min<int32_t>(p, (int32_t)count - 1);
    const auto planes = aligned_floats((F + 1) * kTilePixels);
    std::fill_n(planes.get(), (F + 1) * kTilePixels, 0.0f);
    for (int row = 0; row < grid.rows(tile); ++row) {
      for (int column = 0; column < grid.columns(tile); ++column) {
        const float* from = upstream + ((grid.y(tile) + row) * width + grid.x(tile) + column) * F;
        for (int64_t c = 0; c < F; ++c) planes.get()[c * kTilePixels + kTile * row + column] = from[c];
      }
    }
    read_tile(v_alpha.const_data_ptr<float>(), grid, tile, 0.0f, planes.get() + F * kTilePixels);
    kernels().geometry_backward_tile(splats, features.const_data_ptr<float>(), F, gaussians + begin, count,
                                     (float)grid.x(tile), (float)grid.y(tile), planes.get(), light, position,
                                     moments.get() + 6 * begin);
  });

  const Tensor v_means2d = at::empty_like(means2d), v_conics = at::empty_like(conics),
               v_opacities = at::empty_like(opacities);
  const int64_t* slots = slot_offsets.const_data_ptr<int64_t>();
  const int32_t* isects = slot_isects.const_data_ptr<int32_t>();
  float *v_xy = v_means2d.data_ptr<float>(), *v_k = v_conics.data_ptr<float>(), *v_o = v_opacities.data_ptr<float>();
  at::parallel_for(0, V, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      float m[6] = {};
      for (int64_t slot = slots[g]; slot < slots[g + 1]; ++slot) {
        for (int i = 0; i < 6; ++i) m[i] += moments.get()[6 * (int64_t)isects[slot] + i];
      }
      const float *k = splats.conics + 3 * g;
      v_xy[2 * g] = -(k[0] * m[1] + k[1] * m[2]);
      v_xy[2 * g + 1] = -(k[1] * m[1] + k[2] * m[2]);
      v_k[3 * g] = 0.5f * m[3];
      v_k[3 * g + 1] = m[4];
      v_k[3 * g + 2] = 0.5f * m[5];
      v_o[g] = -m[0] / std::max(splats.opacities[g], kMinAlpha);
    }
  });
  return {v_means2d, v_conics, v_opacities};
}

}  // namespace panoptic_mapper
