// What the pixels of an image say about the Gaussians that it shows (operators `tally_tiles` and `tally_pairs`).
//
// With w_g(u), what Gaussian g makes up of pixel u, a weight of the pixel, and two columns that it names, a(u) of A and b(u)
// of B, the row of g has
//     [0, A)              sum_u w_g(u) weight(u) [a(u) = c]
//     [A, A + B)          sum_u w_g(u) weight(u) [b(u) = c]
//     [A + B, A + 2 B)    sum_u w_g(u) [b(u) = c]
//     A + 2 B             sum_u w_g(u) [a(u) is a column]
// A blend of any values f of the Gaussians is linear in them: sum_u weight(u) blend(f)(u, a(u)) is the sum of the first
// part times f. So losses of blended images that ask for single columns need neither the images nor a pass back.
//
// Contract
//   * Of V Gaussians: the table [V + 1, A + 2 B + 1] float32; its last row has the same sums with w = 1.
//   * columns [H, W] int64, none where they are outside of their range; weights [H, W] float32.
//   * Gradients reach nothing. No synchronisation; can be captured in a graph.
//   * `tally_tiles` takes gsplat's projected Gaussians, means2d [V, 2] px (the top-left pixel's centre is at (0.5, 0.5)), conics
//     [V, 3], opacities [V], and its lists: offsets [1, tiles_y, tiles_x] int32 into isect_gaussians [M] int32. CPU or CUDA; on
//     CUDA it adds with atomics, as gsplat does: sums differ in their last bits from run to run.
//   * `tally_pairs` takes the lists of rasterize.h. CPU; bit-identical for any number of threads.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "device_code.h"

namespace panoptic_mapper {

at::Tensor tally_tiles(const at::Tensor& means2d, const at::Tensor& conics, const at::Tensor& opacities,
                       const at::Tensor& tile_offsets, const at::Tensor& isect_gaussians, const at::Tensor& a,
                       const at::Tensor& b, const at::Tensor& weights, int64_t num_a, int64_t num_b);

struct TallyImages {
  const int64_t *a, *b;
  const float* weights;
  int64_t height, width;
  int A, B;

  PM_DEVICE int num_columns() const { return A + 2 * B + 1; }
  PM_DEVICE int a_of(int64_t pixel) const { return a[pixel] >= 0 && a[pixel] < A ? (int)a[pixel] : -1; }
  PM_DEVICE int b_of(int64_t pixel) const { return b[pixel] >= 0 && b[pixel] < B ? (int)b[pixel] : -1; }

  // Calls add(column, value) for what a pixel with these columns gives: its weight times w, and w.
  template <typename Add>
  PM_DEVICE void add(int a_column, int b_column, float weighted, float plain, const Add& add) const {
    if (a_column >= 0) add(a_column, weighted), add(A + 2 * B, plain);
    if (b_column >= 0) add(A + b_column, weighted), add(A + B + b_column, plain);
  }
};

struct TallySplats {
  const float *means2d, *conics, *opacities;
  const int32_t *tile_offsets, *isect_gaussians;
  int64_t num_gaussians, num_isects;
  int tiles_x, num_tiles;

  PM_DEVICE int64_t begin(int tile) const { return tile_offsets[tile]; }
  PM_DEVICE int64_t end(int tile) const { return tile + 1 < num_tiles ? tile_offsets[tile + 1] : num_isects; }
};

// CUDA kernel (tally_kernels.cu). The table is 0.
void launch_tally(const TallySplats& splats, const TallyImages& images, float* table, int device);

}  // namespace panoptic_mapper
