// Tallies: checks, the CPU implementations, and the hand-over to the CUDA kernel.

#include "tally.h"

#include <algorithm>
#include <cmath>
#include <string>

#include <ATen/Functions.h>

#include "rasterize.h"
#include "tensor_checks.h"

namespace panoptic_mapper {
namespace {

void tally_on_cpu(const TallySplats& s, const TallyImages& im, float* table) {
  for (int64_t pixel = 0; pixel < im.height * im.width; ++pixel) {
    const int a = im.a_of(pixel), b = im.b_of(pixel);
    if (a < 0 && b < 0) continue;
    const auto add_to = [&](int64_t g, float w) {
      float* row = table + g * im.num_columns();
      im.add(a, b, w * im.weights[pixel], w, [row](int column, float value) { row[column] += value; });
    };
    add_to(s.num_gaussians, 1);
    const int64_t y = pixel / im.width, x = pixel % im.width;
    const int tile = (int)(y / kTile * s.tiles_x + x / kTile);
    float transmittance = 1;
    for (int64_t i = s.begin(tile); i < s.end(tile); ++i) {
      const int64_t g = s.isect_gaussians[i];
      const float dx = s.means2d[2 * g] - ((float)x + 0.5f), dy = s.means2d[2 * g + 1] - ((float)y + 0.5f);
      const float *conic = s.conics + 3 * g;
      const float sigma = 0.5f * (conic[0] * dx * dx + conic[2] * dy * dy) + conic[1] * dx * dy;
      const float alpha = std::min(kMaxAlpha, s.opacities[g] * std::exp(-sigma));
      if (sigma < 0 || alpha < kMinAlpha) continue;
      const float next = transmittance * (1 - alpha);
      if (next <= kMinTransmittance) break;
      add_to(g, alpha * transmittance);
      transmittance = next;
    }
  }
}

}  // namespace

Tensor tally_tiles(const Tensor& means2d, const Tensor& conics, const Tensor& opacities, const Tensor& tile_offsets,
                   const Tensor& isect_gaussians, const Tensor& a, const Tensor& b, const Tensor& weights, int64_t num_a,
                   int64_t num_b) {
  const at::Device device = means2d.device();
  check_on(means2d, "means2d", device, at::kFloat, {-1, 2});
  const int64_t V = means2d.size(0);
  check_on(conics, "conics", device, at::kFloat, {V, 3});
  check_on(opacities, "opacities", device, at::kFloat, {V});
  check_on(a, "a", device, at::kLong, {-1, -1});
  const int64_t H = a.size(0), W = a.size(1), tiles_y = (H + kTile - 1) / kTile, tiles_x = (W + kTile - 1) / kTile;
  check_on(b, "b", device, at::kLong, {H, W});
  check_on(weights, "weights", device, at::kFloat, {H, W});
  check_on(tile_offsets, "tile_offsets", device, at::kInt, {1, tiles_y, tiles_x});
  check_on(isect_gaussians, "isect_gaussians", device, at::kInt, {-1});
  TORCH_CHECK_VALUE(num_a >= 0 && num_b >= 0, "num_a, num_b: expected at least 0, got " + std::to_string(num_a) + ", " +
                                                  std::to_string(num_b));
  const Tensor means = means2d.contiguous(), shapes = conics.contiguous(), opacity = opacities.contiguous(),
               offsets = tile_offsets.contiguous(), isects = isect_gaussians.contiguous(), of_a = a.contiguous(),
               of_b = b.contiguous(), weight = weights.contiguous();
  const TallySplats splats{means.const_data_ptr<float>(), shapes.const_data_ptr<float>(), opacity.const_data_ptr<float>(),
                           offsets.const_data_ptr<int32_t>(), isects.const_data_ptr<int32_t>(), V, isects.size(0),
                           (int)tiles_x, (int)(tiles_y * tiles_x)};
  const TallyImages images{of_a.const_data_ptr<int64_t>(), of_b.const_data_ptr<int64_t>(), weight.const_data_ptr<float>(), H,
                           W, (int)num_a, (int)num_b};
  const Tensor table = at::zeros({V + 1, images.num_columns()}, means.options());
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (means.is_cuda()) {
    launch_tally(splats, images, table.data_ptr<float>(), means.get_device());
    return table;
  }
#endif
  tally_on_cpu(splats, images, table.data_ptr<float>());
  return table;
}

}  // namespace panoptic_mapper
