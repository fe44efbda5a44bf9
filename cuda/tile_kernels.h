// What the tensor side (tile_lists.cpp, rasterize.cpp) and the vectorised inner loops (rasterize_tile.inc) share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu_common.h"
#include "rasterize.h"

namespace panoptic_mapper {

struct Splats {  // projected Gaussians
  const float *means2d, *conics, *extents, *opacities;
};

// The drawn pairs of one tile, in order of its list. Raw growing buffers: the kernel writes past `size` freely.
struct TilePairs {
  std::unique_ptr<float[]> weights;
  std::unique_ptr<uint8_t[]> pixels;
  int64_t size = 0, capacity = 0;

  void reserve_one_tile() {
    if (size + kTilePixels + 1 <= capacity) return;
    const int64_t larger = 2 * capacity + 16 * kTilePixels;
    std::unique_ptr<float[]> more_weights(new float[larger]);
    std::unique_ptr<uint8_t[]> more_pixels(new uint8_t[larger]);
    std::copy_n(weights.get(), size, more_weights.get());
    std::copy_n(pixels.get(), size, more_pixels.get());
    weights = std::move(more_weights);
    pixels = std::move(more_pixels);
    capacity = larger;
  }
};

struct Lists {  // see list_gaussians
  const int64_t *tile_offsets, *slot_offsets, *pair_offsets;
  const int32_t *isect_gaussians, *slot_isects, *tile_of_isect;
  const uint8_t* pair_pixels;
  const float* pair_weights;
  int64_t width, tiles_x;

  int64_t tile_origin(int64_t tile) const {  // its first pixel
    return (tile / tiles_x) * kTile * width + (tile % tiles_x) * kTile;
  }
};

// Image rows of any number of channels that may be read in whole vectors: the last pixels, where such a read would
// leave the tensor, come from a padded copy.
struct PaddedImage {
  const float* data;
  int64_t channels, num_safe;
  std::vector<float> tail;

  PaddedImage(const float* data, int64_t num_pixels, int64_t channels) : data(data), channels(channels) {
    const int64_t padded = (channels + 15) / 16 * 16;
    num_safe = std::max<int64_t>(0, num_pixels - (padded + channels - 1) / channels);
    tail.assign((num_pixels - num_safe) * channels + 16, 0.0f);
    std::copy(data + num_safe * channels, data + num_pixels * channels, tail.begin());
  }
  const float* row(int64_t pixel) const {
    return pixel < num_safe ? data + pixel * channels : tail.data() + (pixel - num_safe) * channels;
  }
};

struct TileKernels {
  void (*weigh_tile)(const Splats&, const int32_t*, int64_t, float, float, int, int, TilePairs&, int64_t*, float*,
                     int32_t*);
  void (*blend_tile)(const Lists&, int64_t, int64_t, const float*, int64_t, int64_t, float*);
  void (*gather_gaussian)(const Lists&, int64_t, const PaddedImage&, int64_t, int64_t, float*);
  void (*geometry_backward_tile)(const Splats&, const float*, int64_t, const int32_t*, int64_t, float, float,
                                 const float*, const float*, const int32_t*, float*);
};

// The kernels for this machine.
const TileKernels& kernels();

struct Grid {
  int64_t width, height, tiles_x, tiles_y, num_tiles;

  Grid(int64_t width, int64_t height)
      : width(width), height(height), tiles_x((width + kTile - 1) / kTile), tiles_y((height + kTile - 1) / kTile),
        num_tiles(tiles_x * tiles_y) {}
  int64_t x(int64_t tile) const { return tile % tiles_x * kTile; }
  int64_t y(int64_t tile) const { return tile / tiles_x * kTile; }
  int columns(int64_t tile) const { return (int)std::min(kTile, width - x(tile)); }
  int rows(int64_t tile) const { return (int)std::min(kTile, height - y(tile)); }
};

// Copies the part of a [H, W] image that a tile covers into [256]; `outside` fills the rest.
template <typename T>
void read_tile(const T* image, const Grid& grid, int64_t tile, T outside, T* out) {
  std::fill_n(out, kTilePixels, outside);
  for (int row = 0; row < grid.rows(tile); ++row) {
    std::copy_n(image + (grid.y(tile) + row) * grid.width + grid.x(tile), grid.columns(tile), out + kTile * row);
  }
}

template <typename T>
void write_tile(T* image, const Grid& grid, int64_t tile, const T* values) {
  for (int row = 0; row < grid.rows(tile); ++row) {
    std::copy_n(values + kTile * row, grid.columns(tile), image + (grid.y(tile) + row) * grid.width + grid.x(tile));
  }
}

inline void check_splats(const Tensor& means2d, const Tensor& conics, const Tensor& extents, const Tensor& opacities) {
  check_float(means2d, "means2d", {-1, 2});
  check_float(conics, "conics", {means2d.size(0), 3});
  check_float(extents, "extents", {means2d.size(0), 2});
  check_float(opacities, "opacities", {means2d.size(0)});
}

inline Splats splats_of(const Tensor& means2d, const Tensor& conics, const Tensor& extents, const Tensor& opacities) {
  return {means2d.const_data_ptr<float>(), conics.const_data_ptr<float>(), extents.const_data_ptr<float>(),
          opacities.const_data_ptr<float>()};
}

}  // namespace panoptic_mapper
