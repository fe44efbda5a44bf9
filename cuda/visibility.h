// What a camera may see (operators `frustum_mask` and `holding_mask`): which Gaussians are candidates of a view, and which
// objects have a visible Gaussian in their 99 % ellipsoid and reach into the frustum.
//
// Contract
//   * float32 on one device, CPU or CUDA; points and queries may have any row stride, the elements of a row lie side by
//     side (else they are copied). Cameras have the centre of the top-left pixel at (0, 0); T maps the map to the camera.
//   * `rows` of holding_mask: rows of the means; one outside of them is an IndexError on the CPU, and on CUDA an error that
//     comes later (device_errors.h), such a row counts for nothing.
//   * CUDA: current stream, no synchronisation, can be captured in a graph. Results do not depend on the order of threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>

#include <ATen/core/Tensor.h>

#include "device_code.h"
#include "whitening.h"

namespace panoptic_mapper {

constexpr float kMinDepth = 1e-6f;  // m, keeps divisions finite
constexpr int kLimitTile = 16;      // pixels; panoptic_mapper/occlusion.py has the same

// Which points [N, 3] project into the image widened by `margin`, a share of its size, are beyond near_m, and before the
// depth `limits` [h, w] m of their tile, where these are given: bool [N].
at::Tensor frustum_mask(const at::Tensor& means, const at::Tensor& T_camera_map, double fx, double fy, double cx,
                        double cy, int64_t width, int64_t height, double margin, double near_m,
                        const std::optional<at::Tensor>& limits);

// Which Gaussians, centers [Q, 3], quats [Q, 4] and log_scales [Q, 3], hold one of means[rows] within the squared
// Mahalanobis radius chi2, and have a sphere around that ellipsoid that meets the frustum: bool [Q].
at::Tensor holding_mask(const at::Tensor& means, const at::Tensor& rows, const at::Tensor& centers,
                        const at::Tensor& quats, const at::Tensor& log_scales, const at::Tensor& T_camera_map, double fx,
                        double fy, double cx, double cy, int64_t width, int64_t height, double chi2);

struct ViewCamera {
  float fx, fy, cx, cy, width, height;
};

PM_DEVICE inline void to_camera(const float* T, const float* point, float* out) {
  for (int i = 0; i < 3; ++i) {
    out[i] = T[4 * i] * point[0] + T[4 * i + 1] * point[1] + T[4 * i + 2] * point[2] + T[4 * i + 3];
  }
}

struct Frustum {
  const float *means, *T, *limits;  // limits: null = none
  int64_t num_means, mean_stride;
  ViewCamera camera;
  float margin, near_m;
  int limit_rows, limit_columns;
};

PM_DEVICE inline float clamped(float x, float low, float high) { return fminf(fmaxf(x, low), high); }

PM_DEVICE inline bool is_candidate(const Frustum& f, int64_t i) {
  float p[3];
  to_camera(f.T, f.means + i * f.mean_stride, p);
  const float z = fmaxf(p[2], kMinDepth);
  const float u = p[0] / z * f.camera.fx + f.camera.cx, v = p[1] / z * f.camera.fy + f.camera.cy;
  const float beside = f.margin * f.camera.width, above = f.margin * f.camera.height;
  const bool is_inside = p[2] > f.near_m && u > -beside && u < f.camera.width + beside && v > -above &&
                         v < f.camera.height + above;
  if (!is_inside || f.limits == nullptr) return is_inside;
  const int column = (int)clamped((u + 0.5f) / kLimitTile, 0.0f, (float)(f.limit_columns - 1));
  const int row = (int)clamped((v + 0.5f) / kLimitTile, 0.0f, (float)(f.limit_rows - 1));
  return p[2] < f.limits[row * f.limit_columns + column];
}

struct Ellipsoids {  // strides in elements
  const float *means, *centers, *quats, *log_scales, *T;
  const int64_t* rows;
  int64_t num_means, num_rows, num_queries, mean_stride, center_stride, quat_stride, scale_stride;
  ViewCamera camera;
  float chi2;
};

constexpr int kEllipsoidFloats = 12;  // whitening matrix and centre

// Prepares query q: its whitening matrix and centre, and whether its sphere meets the frustum at all.
PM_DEVICE inline bool prepare_ellipsoid(const Ellipsoids& e, int64_t q, float* out) {
  const float *center = e.centers + q * e.center_stride, *log_scale = e.log_scales + q * e.scale_stride;
  whitening_matrix(e.quats + q * e.quat_stride, log_scale, out);
  for (int i = 0; i < 3; ++i) out[9 + i] = center[i];
  const float radius = sqrtf(e.chi2) * expf(fmaxf(fmaxf(log_scale[0], log_scale[1]), log_scale[2]));
  float p[3];
  to_camera(e.T, center, p);
  bool meets = p[2] > -radius;
  const float focal[2] = {e.camera.fx, e.camera.fy}, middle[2] = {e.camera.cx, e.camera.cy};
  const float size[2] = {e.camera.width, e.camera.height};
  for (int i = 0; i < 2; ++i) {  // against the planes through the image's borders
    const float low = -(middle[i] + 0.5f) / focal[i], high = (size[i] - 0.5f - middle[i]) / focal[i];
    meets = meets && (p[i] - low * p[2]) / sqrtf(1 + low * low) > -radius;
    meets = meets && (high * p[2] - p[i]) / sqrtf(1 + high * high) > -radius;
  }
  return meets;
}

PM_DEVICE inline bool holds(const float* ellipsoid, const float* point, float chi2) {
  float distance = 0;
  const float x = point[0] - ellipsoid[9], y = point[1] - ellipsoid[10], z = point[2] - ellipsoid[11];
  for (int i = 0; i < 3; ++i) {
    const float along = ellipsoid[3 * i] * x + ellipsoid[3 * i + 1] * y + ellipsoid[3 * i + 2] * z;
    distance += along * along;
  }
  return distance < chi2;
}

// CUDA kernels (visibility_kernels.cu). `ellipsoids` is float [Q, kEllipsoidFloats], `meets` bool [Q].
void launch_frustum_mask(const Frustum& frustum, bool* mask, int device);
void launch_holding_mask(const Ellipsoids& ellipsoids, float* prepared, bool* meets, bool* mask, int device);

}  // namespace panoptic_mapper
