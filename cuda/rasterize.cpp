// Tile lists, splatting and its gradients. The inner loops are in rasterize_tile.inc.

#include "rasterize.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include <ATen/Functions.h>

#include "cpu_common.h"

namespace panoptic_mapper {
namespace {

struct Splats {  // projected Gaussians
  const float *means2d, *conics, *extents, *opacities;
};

// The drawn pairs of one tile, in order of its list. Raw growing buffers: the kernel writes past `size` freely.
struct TilePairs {
  std::unique_ptr<float[]> weights;
  std::unique_ptr<uint8_t[]> pixels;
  std::vector<int64_t> end_of_isect;
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
  void (*weigh_tile)(const Splats&, const int32_t*, int64_t, float, float, int, int, TilePairs&, float*, int32_t*);
  void (*blend_tile)(const Lists&, int64_t, int64_t, const float*, int64_t, int64_t, float*);
  void (*gather_gaussian)(const Lists&, int64_t, const PaddedImage&, int64_t, int64_t, float*);
  void (*geometry_backward_tile)(const Splats&, const float*, int64_t, const int32_t*, int64_t, float, float,
                                 const float*, const float*, const int32_t*, float*);
};

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

const TileKernels& kernels() {
  static const TileKernels& picked = pick_kernels();
  return picked;
}

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

// ---- Lists ---------------------------------------------------------------------------------------------------

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

void check_splats(const Tensor& means2d, const Tensor& conics, const Tensor& extents, const Tensor& opacities) {
  check_float(means2d, "means2d", {-1, 2});
  check_float(conics, "conics", {means2d.size(0), 3});
  check_float(extents, "extents", {means2d.size(0), 2});
  check_float(opacities, "opacities", {means2d.size(0)});
}

Splats splats_of(const Tensor& means2d, const Tensor& conics, const Tensor& extents, const Tensor& opacities) {
  return {means2d.const_data_ptr<float>(), conics.const_data_ptr<float>(), extents.const_data_ptr<float>(),
          opacities.const_data_ptr<float>()};
}

// ---- Checks of lists -----------------------------------------------------------------------------------------

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

constexpr int64_t kGroup = 64;  // channels that one pass over the pairs handles

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

struct FreeDeleter {
  void operator()(float* p) const { std::free(p); }
};
using AlignedFloats = std::unique_ptr<float, FreeDeleter>;

AlignedFloats aligned_floats(int64_t count) {  // on the vectors' boundary
  const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
  return AlignedFloats(static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))));
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
  std::vector<TilePairs> found(grid.num_tiles);
  parallel_dynamic(grid.num_tiles, 1, [&](int64_t tile) {
    alignas(64) float light[kTilePixels];
    alignas(64) int32_t position[kTilePixels];
    const int64_t count = tile_offsets[tile + 1] - tile_offsets[tile];
    found[tile].end_of_isect.reserve(count);
    kernels().weigh_tile(splats, gaussians + tile_offsets[tile], count, (float)grid.x(tile), (float)grid.y(tile),
                         grid.columns(tile), grid.rows(tile), found[tile], light, position);
    write_tile(transmittance.data_ptr<float>(), grid, tile, light);
    write_tile(last.data_ptr<int32_t>(), grid, tile, position);
  });

  std::vector<int64_t> starts(grid.num_tiles + 1, 0);
  for (int64_t tile = 0; tile < grid.num_tiles; ++tile) starts[tile + 1] = starts[tile] + found[tile].size;
  const Tensor pair_offsets = at::zeros({M + 1}, at::kLong);
  const Tensor pair_pixels = at::empty({starts.back()}, at::kByte);
  const Tensor pair_weights = at::empty({starts.back()}, at::kFloat);
  int64_t* ends = pair_offsets.data_ptr<int64_t>() + 1;
  uint8_t* pixels = pair_pixels.data_ptr<uint8_t>();
  float* weights = pair_weights.data_ptr<float>();
  parallel_dynamic(grid.num_tiles, 4, [&](int64_t tile) {
    const TilePairs& pairs = found[tile];
    for (size_t k = 0; k < pairs.end_of_isect.size(); ++k) {
      ends[tile_offsets[tile] + k] = starts[tile] + pairs.end_of_isect[k];
    }
    std::copy_n(pairs.pixels.get(), pairs.size, pixels + starts[tile]);
    std::copy_n(pairs.weights.get(), pairs.size, weights + starts[tile]);
  });
  return {lists.tile_offsets, lists.isect_gaussians, lists.slot_offsets, lists.slot_isects, pair_offsets,
          pair_pixels,        pair_weights,          transmittance,      last};
}

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
  std::vector<int32_t> tile_of_isect(isect_gaussians.size(0));
  for (int64_t tile = 0; tile < grid.num_tiles; ++tile) {
    std::fill(tile_of_isect.begin() + lists.tile_offsets[tile], tile_of_isect.begin() + lists.tile_offsets[tile + 1],
              (int32_t)tile);
  }
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
