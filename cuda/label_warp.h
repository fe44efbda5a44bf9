// Label warping (operators `label_warp` and `label_warp_backward`): the cross entropy of a view's labels with those
// that another image holds for the same surface, fused from back-projection to the sum.
//
// Each pixel u of view i is lifted with its depth, moved to the camera of image j and projected to u', rounded to the
// nearest pixel. It counts where u' is inside of j and the surface there is the same one:
//
//     X = T_ji D_i(u) K_i^-1 u     u' = K_j X     kept: D_i(u) > 0, X_z > kWarpNear, D_j(u') > 0,
//                                                       |X_z - D_j(u')| < max(kToleranceM, kTolerance X_z)
//     mass = sum_{u kept, k} q_j(u', k)      loss = -sum_{u kept, k} q_j(u', k) log(max(p_i(u, k), 0) + kFloor) / max(mass, 1)
//
// Contract
//   * All tensors are float32 and on one device, CPU or CUDA. The distributions' channels lie side by side (else they
//     are copied); images may have any other strides, such as those of every n-th pixel.
//   * Depths are metres along the optical axis, 0 = none; NaN and infinity count as none. Intrinsics are fx, fy, cx, cy
//     with the centre of the top-left pixel at (0, 0); T maps points of camera i to camera j.
//   * p where q is 0 does not matter, whatever it is. Gradients reach p only.
//   * Memory: a few numbers per block of threads; no intermediate of the size of an image.
//   * Sums have a fixed order: results are bit-identical from run to run on one machine, on the CPU for any number of
//     threads and on a GPU too.
//   * CUDA: current stream, no synchronisation, can be captured in a graph.
#pragma once

#include <cmath>
#include <cstdint>
#include <tuple>

#include <ATen/core/Tensor.h>

#include "device_code.h"

namespace panoptic_mapper {

// panoptic_mapper/label_warping.py and losses.py have the same.
constexpr float kWarpNear = 0.01f;     // m
constexpr float kToleranceM = 0.03f;   // m
constexpr float kTolerance = 0.02f;    // share of the depth
constexpr float kFloor = 1e-3f;

// In: probabilities [H, W, K], depth [H, W], intrinsics [4], targets [H', W', K], target_depth [H', W'],
//     target_intrinsics [4], T_target_source [4, 4].
// Out: loss [], mass [].
std::tuple<at::Tensor, at::Tensor> label_warp(
    const at::Tensor& probabilities, const at::Tensor& depth, const at::Tensor& intrinsics, const at::Tensor& targets,
    const at::Tensor& target_depth, const at::Tensor& target_intrinsics, const at::Tensor& T_target_source);

// Gradient [H, W, K] of the probabilities from that of the loss [] and the mass [] of the forward pass.
at::Tensor label_warp_backward(
    const at::Tensor& v_loss, const at::Tensor& mass, const at::Tensor& probabilities, const at::Tensor& depth,
    const at::Tensor& intrinsics, const at::Tensor& targets, const at::Tensor& target_depth,
    const at::Tensor& target_intrinsics, const at::Tensor& T_target_source);

// What the kernels of both devices see. Strides in elements; channels have a stride of 1.
struct WarpImages {
  const float *probabilities, *depth, *intrinsics, *targets, *target_depth, *target_intrinsics, *T;
  int64_t height, width, target_height, target_width, channels;
  int64_t p_row, p_column, depth_row, depth_column, q_row, q_column, target_row, target_column;
};

struct WarpCamera {  // the numbers of both cameras, loaded once
  float fx, fy, cx, cy, gx, gy, dx, dy, T[12];

  PM_DEVICE explicit WarpCamera(const WarpImages& w)
      : fx(w.intrinsics[0]), fy(w.intrinsics[1]), cx(w.intrinsics[2]), cy(w.intrinsics[3]),
        gx(w.target_intrinsics[0]), gy(w.target_intrinsics[1]), dx(w.target_intrinsics[2]),
        dy(w.target_intrinsics[3]) {
    for (int i = 0; i < 12; ++i) T[i] = w.T[i];
  }
};

// Offset in `targets` of the labels that pixel (row, column) is compared with; -1 = none.
PM_DEVICE inline int64_t find_target(const WarpImages& w, const WarpCamera& c, int64_t row, int64_t column) {
  const float depth = w.depth[row * w.depth_row + column * w.depth_column];
  const float a = ((float)column - c.cx) / c.fx, b = ((float)row - c.cy) / c.fy;  // the ray, at a depth of 1 m
  const float x = depth * (c.T[0] * a + c.T[1] * b + c.T[2]) + c.T[3];
  const float y = depth * (c.T[4] * a + c.T[5] * b + c.T[6]) + c.T[7];
  const float z = depth * (c.T[8] * a + c.T[9] * b + c.T[10]) + c.T[11];
  if (!(depth > 0.0f && z > kWarpNear)) return -1;
  const float scale = 1.0f / z;
  const float u = floorf(c.gx * x * scale + c.dx + 0.5f), v = floorf(c.gy * y * scale + c.dy + 0.5f);
  if (!(u >= 0.0f && v >= 0.0f && u < (float)w.target_width && v < (float)w.target_height)) return -1;
  const int64_t at_row = (int64_t)v, at_column = (int64_t)u;
  const float surface = w.target_depth[at_row * w.target_row + at_column * w.target_column];
  const bool is_same = surface > 0.0f && fabsf(z - surface) < fmaxf(kTolerance * z, kToleranceM);
  return is_same ? at_row * w.q_row + at_column * w.q_column : -1;
}

// CUDA kernels (label_warp_kernels.cu). `partials` is double [label_warp_blocks(pixels), 2].
int64_t label_warp_blocks(int64_t num_pixels, int device);
void launch_label_warp(const WarpImages& images, double* partials, float* loss, float* mass, int device);
void launch_label_warp_backward(const WarpImages& images, const float* v_loss, const float* mass,
                                float* v_probabilities, int device);

}  // namespace panoptic_mapper
