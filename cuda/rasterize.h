// The CPU rasteriser's operators (library "panoptic_mapper"): perspective EWA splatting of 3D Gaussians
// (Zwicker et al. 2001; Kerbl et al. 2023) with the model constants of gsplat 1.5.
//
// Contract
//   * All floating tensors are float32, contiguous, on the CPU; anything else is a c10::Error before any work.
//   * The centre of the top-left pixel is at (0, 0). Depths are metres along the optical axis.
//   * Empty inputs are valid and give empty lists and black images. Gaussians that are not finite, or
//     more than 1e15 pixels away or large, are culled.
//   * No atomics on floats: every sum has one fixed order, so results are bit-identical from run to run and for any
//     number of threads (on one machine: the instruction set picks the kernels).
//   * Letters: N Gaussians in, V visible, F feature channels, T tiles of 16x16 pixels in row-major order,
//     M (tile, Gaussian) intersections, P (pixel, Gaussian) pairs that are drawn.
//
// A view is projected once (`project_gaussians`), listed once (`list_gaussians`), and its lists are then shared by
// every image that is splatted from it (`splat`, `blend`).
#pragma once

#include <cstdint>
#include <tuple>

#include <ATen/core/Tensor.h>

namespace panoptic_mapper {

constexpr int64_t kTile = 16;                  // pixels
constexpr int64_t kTilePixels = kTile * kTile;

// The model's constants; panoptic_mapper/rasterizers/base.py has the same.
constexpr double kNear = 0.01;                 // m
constexpr double kFar = 1e10;                  // m
constexpr double kBlur = 1.0 / 12;             // px^2
constexpr double kMaxExtent = 3.33;            // standard deviations
constexpr float kMinAlpha = 1.0f / 255.0f;
constexpr float kMaxAlpha = 0.999f;
constexpr float kMinTransmittance = 1e-4f;

using at::Tensor;

// Culls and projects.
// In: means [N, 3] m, quats [N, 4] wxyz of any length, scales [N, 3] m, opacities [N] in 0..1,
//     T_camera_map [4, 4], intrinsics in pixels.
// Out: means2d [V, 2] px; depths [V] m; conics [V, 3] (xx, xy, yy of the inverse 2D covariance, 1/px^2);
//      extents [V, 2] half sizes of the rectangle outside of which alpha < kMinAlpha, px (no gradient);
//      visible [V] int64 ascending rows whose rectangle, rounded up, meets the image.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> project_gaussians(
    const Tensor& means, const Tensor& quats, const Tensor& scales, const Tensor& opacities,
    const Tensor& T_camera_map, double fx, double fy, double cx, double cy, int64_t width, int64_t height);

// Gradients of means [N, 3], quats [N, 4], scales [N, 3]; rows that are not visible get 0.
std::tuple<Tensor, Tensor, Tensor> project_gaussians_backward(
    const Tensor& means, const Tensor& quats, const Tensor& scales, const Tensor& T_camera_map, double fx, double fy,
    double cx, double cy, int64_t width, int64_t height, const Tensor& visible, const Tensor& v_means2d,
    const Tensor& v_depths, const Tensor& v_conics);

// Sorts the view into tiles, front to back, and computes each drawn pair's weight alpha_i * prod_{j<i} (1 - alpha_j).
// Out: tile_offsets [T + 1] int64 into the intersections; isect_gaussians [M] int32, by tile, then depth, then row;
//      slot_offsets [V + 1] int64 and slot_isects [M] int32: the intersections of each Gaussian, in order of tiles;
//      pair_offsets [M + 1] int64 into the pairs; pair_pixels [P] uint8 (16 * row + column inside the tile);
//      pair_weights [P]; transmittance [H, W] after the last pair; last [H, W] int32 position of the last drawn
//      intersection in the tile's list, -1 for none.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> list_gaussians(
    const Tensor& means2d, const Tensor& depths, const Tensor& conics, const Tensor& extents,
    const Tensor& opacities, int64_t width, int64_t height);

// Sum of weights times features [V, F]: image [H, W, F].
Tensor blend(
    const Tensor& features, const Tensor& tile_offsets, const Tensor& isect_gaussians, const Tensor& slot_offsets,
    const Tensor& slot_isects, const Tensor& pair_offsets, const Tensor& pair_pixels, const Tensor& pair_weights,
    int64_t width, int64_t height);

// Gradient of the features [V, F] from that of the image [H, W, F].
Tensor blend_backward(
    const Tensor& v_image, const Tensor& tile_offsets, const Tensor& isect_gaussians, const Tensor& slot_offsets,
    const Tensor& slot_isects, const Tensor& pair_offsets, const Tensor& pair_pixels, const Tensor& pair_weights);

// What the pixels say about the Gaussians: see tally.h.
Tensor tally_pairs(const Tensor& tile_offsets, const Tensor& isect_gaussians, const Tensor& slot_offsets,
                   const Tensor& slot_isects, const Tensor& pair_offsets, const Tensor& pair_pixels,
                   const Tensor& pair_weights, const Tensor& a, const Tensor& b, const Tensor& weights, int64_t num_a,
                   int64_t num_b);

// The image of `blend` with alpha [H, W] = 1 - transmittance; differentiable in the geometry too.
std::tuple<Tensor, Tensor> splat(
    const Tensor& means2d, const Tensor& conics, const Tensor& extents, const Tensor& opacities,
    const Tensor& features, const Tensor& tile_offsets, const Tensor& isect_gaussians, const Tensor& slot_offsets,
    const Tensor& slot_isects, const Tensor& pair_offsets, const Tensor& pair_pixels, const Tensor& pair_weights,
    const Tensor& transmittance, const Tensor& last);

// Gradients of means2d [V, 2], conics [V, 3] and opacities [V] from those of the image [H, W, F] and of
// alpha = 1 - transmittance [H, W].
std::tuple<Tensor, Tensor, Tensor> splat_geometry_backward(
    const Tensor& v_image, const Tensor& v_alpha, const Tensor& means2d, const Tensor& conics, const Tensor& extents,
    const Tensor& opacities, const Tensor& features, const Tensor& tile_offsets, const Tensor& isect_gaussians,
    const Tensor& slot_offsets, const Tensor& slot_isects, const Tensor& transmittance, const Tensor& last);

}  // namespace panoptic_mapper
