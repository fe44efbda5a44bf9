// Projection of 3D Gaussians to the image and its gradient, in double precision (it is a few per cent of the time, and
// large, thin splats lose their determinant in float).

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/Functions.h>

#include "cpu_common.h"
#include "rasterize.h"

namespace panoptic_mapper {
namespace {

struct Camera {
  double R[3][3], t[3];  // map to camera
  double fx, fy, cx, cy;
  double x_low, x_high, y_low, y_high;  // where x/z and y/z are clamped for the Jacobian: 0.3 tan(fov/2) outside

  Camera(const Tensor& T_camera_map, double fx, double fy, double cx, double cy, int64_t width, int64_t height)
      : fx(fx), fy(fy), cx(cx), cy(cy) {
    const float* T = T_camera_map.const_data_ptr<float>();
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) R[i][j] = T[4 * i + j];
      t[i] = T[4 * i + 3];
    }
    const double margin_x = 0.3 * 0.5 * width / fx, margin_y = 0.3 * 0.5 * height / fy;
    x_low = -(cx + 0.5) / fx - margin_x;  // the image spans -0.5 .. width - 0.5
    x_high = (width - cx - 0.5) / fx + margin_x;
    y_low = -(cy + 0.5) / fy - margin_y;
    y_high = (height - cy - 0.5) / fy + margin_y;
  }
};

// The projection of one Gaussian with what its gradient needs (Zwicker et al. 2001, eq. 26 to 31).
struct Projection {
  double p[3];           // mean in the camera frame
  double q[4], q_scale;  // normalised quaternion, 1 / length
  double Rq[3][3];       // rotation of q
  double A[3][3];        // R Rq diag(s): a square root of the covariance in the camera frame
  double J[2][3];        // Jacobian of the perspective projection
  double U[2][3];        // J A: a square root of the 2D covariance before the blur
  bool x_inside, y_inside;
  double cov_xx, cov_xy, cov_yy, det;
};

void rotation_of(const double q[4], double R[3][3]) {
  const double w = q[0], x = q[1], y = q[2], z = q[3];
  const double rows[3][3] = {{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)},
                             {2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)},
                             {2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}};
  std::copy(&rows[0][0], &rows[0][0] + 9, &R[0][0]);
}

// False where the Gaussian lies outside of the depth range or is not finite.
bool to_camera(const Camera& camera, const float* mean, double p[3]) {
  for (int i = 0; i < 3; ++i) {
    p[i] = camera.R[i][0] * mean[0] + camera.R[i][1] * mean[1] + camera.R[i][2] * mean[2] + camera.t[i];
  }
  return p[2] >= kNear && p[2] <= kFar && std::isfinite(p[0]) && std::isfinite(p[1]);
}

bool project_one(const Camera& c, const float* mean, const float* quat, const float* scale, Projection& o) {
  if (!to_camera(c, mean, o.p)) return false;
  const double length = std::sqrt((double)quat[0] * quat[0] + (double)quat[1] * quat[1] + (double)quat[2] * quat[2] +
                                  (double)quat[3] * quat[3]);
  o.q_scale = 1.0 / std::max(length, 1e-12);
  for (int i = 0; i < 4; ++i) o.q[i] = quat[i] * o.q_scale;
  rotation_of(o.q, o.Rq);
  for (int i = 0; i < 3; ++i) {
    for (int k = 0; k < 3; ++k) {
      o.A[i][k] = (c.R[i][0] * o.Rq[0][k] + c.R[i][1] * o.Rq[1][k] + c.R[i][2] * o.Rq[2][k]) * scale[k];
    }
  }
  const double rz = 1.0 / o.p[2], x = o.p[0] * rz, y = o.p[1] * rz;
  const double tx = std::clamp(x, c.x_low, c.x_high), ty = std::clamp(y, c.y_low, c.y_high);
  o.x_inside = x >= c.x_low && x <= c.x_high;
  o.y_inside = y >= c.y_low && y <= c.y_high;
  const double J[2][3] = {{c.fx * rz, 0, -c.fx * tx * rz}, {0, c.fy * rz, -c.fy * ty * rz}};
  std::copy(&J[0][0], &J[0][0] + 6, &o.J[0][0]);
  for (int i = 0; i < 2; ++i) {
    for (int k = 0; k < 3; ++k) o.U[i][k] = J[i][i] * o.A[i][k] + J[i][2] * o.A[2][k];
  }
  o.cov_xx = o.U[0][0] * o.U[0][0] + o.U[0][1] * o.U[0][1] + o.U[0][2] * o.U[0][2] + kBlur;
  o.cov_xy = o.U[0][0] * o.U[1][0] + o.U[0][1] * o.U[1][1] + o.U[0][2] * o.U[1][2];
  o.cov_yy = o.U[1][0] * o.U[1][0] + o.U[1][1] * o.U[1][1] + o.U[1][2] * o.U[1][2] + kBlur;
  o.det = o.cov_xx * o.cov_yy - o.cov_xy * o.cov_xy;
  return o.det > 0 && std::isfinite(o.det);
}

constexpr double kMaxPixels = 1e15;  // squares of what is larger leave float's range

struct Visible {  // one visible Gaussian, as it leaves the operator
  int64_t row;
  float mean2d[2], depth, conic[3], extent[2];
};

bool make_visible(const Camera& c, const Projection& p, float opacity, int64_t width, int64_t height, Visible& v) {
  if (!(opacity >= kMinAlpha)) return false;
  const double extent = std::min(kMaxExtent, std::sqrt(2.0 * std::log((double)opacity / (double)kMinAlpha)));
  const double x = c.fx * p.p[0] / p.p[2] + c.cx, y = c.fy * p.p[1] / p.p[2] + c.cy;
  const double half_x = extent * std::sqrt(p.cov_xx), half_y = extent * std::sqrt(p.cov_yy);
  if (!(std::max(std::abs(x), std::abs(y)) < kMaxPixels && std::max(half_x, half_y) < kMaxPixels)) return false;
  const double radius_x = std::ceil(half_x), radius_y = std::ceil(half_y);
  if (radius_x <= 0 && radius_y <= 0) return false;
  if (x + 0.5 + radius_x <= 0 || x + 0.5 - radius_x >= width) return false;
  if (y + 0.5 + radius_y <= 0 || y + 0.5 - radius_y >= height) return false;
  v = {v.row,
       {(float)x, (float)y},
       (float)p.p[2],
       {(float)(p.cov_yy / p.det), (float)(-p.cov_xy / p.det), (float)(p.cov_xx / p.det)},
       {(float)half_x, (float)half_y}};
  return true;
}

void check_gaussians(const Tensor& means, const Tensor& quats, const Tensor& scales, const Tensor& T_camera_map,
                     double fx, double fy, int64_t width, int64_t height) {
  check_float(means, "means", {-1, 3});
  check_float(quats, "quats", {means.size(0), 4});
  check_float(scales, "scales", {means.size(0), 3});
  check_float(T_camera_map, "T_camera_map", {4, 4});
  TORCH_CHECK(fx > 0 && fy > 0, "fx, fy: expected > 0, got ", fx, ", ", fy);
  check_image_size(width, height);
}

// dL/dq of a normalised quaternion from dL/dR (R is quadratic in q).
void rotation_gradient(const double q[4], const double v[3][3], double v_q[4]) {
  const double w = q[0], x = q[1], y = q[2], z = q[3];
  v_q[0] = 2 * (x * (v[2][1] - v[1][2]) + y * (v[0][2] - v[2][0]) + z * (v[1][0] - v[0][1]));
  v_q[1] = 2 * (-2 * x * (v[1][1] + v[2][2]) + y * (v[0][1] + v[1][0]) + z * (v[0][2] + v[2][0]) +
                w * (v[2][1] - v[1][2]));
  v_q[2] = 2 * (x * (v[0][1] + v[1][0]) - 2 * y * (v[0][0] + v[2][2]) + z * (v[1][2] + v[2][1]) +
                w * (v[0][2] - v[2][0]));
  v_q[3] = 2 * (x * (v[0][2] + v[2][0]) + y * (v[1][2] + v[2][1]) - 2 * z * (v[0][0] + v[1][1]) +
                w * (v[1][0] - v[0][1]));
}

void project_one_backward(const Camera& c, const Projection& o, const float* scale, const float* v_mean2d,
                          float v_depth, const float* v_conic, float* v_mean, float* v_quat, float* v_scale) {
  // Inverse of the covariance: dL/dcov = -K G K, with G symmetric (the off-diagonal gradient split in two).
  const double kxx = o.cov_yy / o.det, kxy = -o.cov_xy / o.det, kyy = o.cov_xx / o.det;
  const double gxx = v_conic[0], gxy = 0.5 * v_conic[1], gyy = v_conic[2];
  const double a = kxx * gxx + kxy * gxy, b = kxx * gxy + kxy * gyy;
  const double d = kxy * gxx + kyy * gxy, e = kxy * gxy + kyy * gyy;
  const double v_xx = -(a * kxx + b * kxy), v_xy = -(a * kxy + b * kyy), v_yy = -(d * kxy + e * kyy);
  double v_A[3][3], v_J[2][3] = {};
  for (int k = 0; k < 3; ++k) {  // cov = U U^T, U = J A
    const double v_U0 = 2 * (v_xx * o.U[0][k] + v_xy * o.U[1][k]);
    const double v_U1 = 2 * (v_xy * o.U[0][k] + v_yy * o.U[1][k]);
    for (int i = 0; i < 3; ++i) {
      v_A[i][k] = o.J[0][i] * v_U0 + o.J[1][i] * v_U1;
      v_J[0][i] += v_U0 * o.A[i][k];
      v_J[1][i] += v_U1 * o.A[i][k];
    }
  }
  const double rz = 1.0 / o.p[2], rz2 = rz * rz;
  double v_p[3] = {c.fx * rz * v_mean2d[0], c.fy * rz * v_mean2d[1], (double)v_depth};
  v_p[2] -= (c.fx * o.p[0] * v_mean2d[0] + c.fy * o.p[1] * v_mean2d[1]) * rz2;
  v_p[2] -= (c.fx * v_J[0][0] + c.fy * v_J[1][1]) * rz2;
  // J[0][2] = -fx tx / z^2 where tx is x, or z times the limit where x/z is clamped.
  v_p[2] -= (o.x_inside ? 2 : 1) * o.J[0][2] * rz * v_J[0][2] + (o.y_inside ? 2 : 1) * o.J[1][2] * rz * v_J[1][2];
  if (o.x_inside) v_p[0] -= c.fx * rz2 * v_J[0][2];
  if (o.y_inside) v_p[1] -= c.fy * rz2 * v_J[1][2];
  double v_Rq[3][3];
  for (int k = 0; k < 3; ++k) {  // A = R Rq diag(s)
    double v_s = 0;
    for (int i = 0; i < 3; ++i) {
      const double w = c.R[0][i] * v_A[0][k] + c.R[1][i] * v_A[1][k] + c.R[2][i] * v_A[2][k];
      v_s += o.Rq[i][k] * w;
      v_Rq[i][k] = w * scale[k];
    }
    v_scale[k] = (float)v_s;
    v_mean[k] = (float)(c.R[0][k] * v_p[0] + c.R[1][k] * v_p[1] + c.R[2][k] * v_p[2]);
  }
  double v_q[4];
  rotation_gradient(o.q, v_Rq, v_q);
  const double along = o.q[0] * v_q[0] + o.q[1] * v_q[1] + o.q[2] * v_q[2] + o.q[3] * v_q[3];
  for (int i = 0; i < 4; ++i) v_quat[i] = (float)((v_q[i] - o.q[i] * along) * o.q_scale);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> project_gaussians(
    const Tensor& means, const Tensor& quats, const Tensor& scales, const Tensor& opacities,
    const Tensor& T_camera_map, double fx, double fy, double cx, double cy, int64_t width, int64_t height) {
  check_gaussians(means, quats, scales, T_camera_map, fx, fy, width, height);
  const int64_t N = means.size(0);
  check_float(opacities, "opacities", {N});
  const Camera camera(T_camera_map, fx, fy, cx, cy, width, height);
  const float *m = means.const_data_ptr<float>(), *q = quats.const_data_ptr<float>();
  const float *s = scales.const_data_ptr<float>(), *o = opacities.const_data_ptr<float>();
  constexpr int64_t kBlock = 2048;
  std::vector<std::vector<Visible>> found((N + kBlock - 1) / kBlock);
  parallel_dynamic(found.size(), 1, [&](int64_t block) {
    Projection p;
    Visible v;
    for (v.row = block * kBlock; v.row < std::min(N, (block + 1) * kBlock); ++v.row) {
      const int64_t i = v.row;
      if (project_one(camera, m + 3 * i, q + 4 * i, s + 3 * i, p) && make_visible(camera, p, o[i], width, height, v)) {
        found[block].push_back(v);
      }
    }
  });
  std::vector<int64_t> offsets(found.size() + 1, 0);
  for (size_t b = 0; b < found.size(); ++b) offsets[b + 1] = offsets[b] + (int64_t)found[b].size();
  const int64_t V = offsets.back();
  const auto floats = means.options();
  const Tensor visible = at::empty({V}, floats.dtype(at::kLong)), means2d = at::empty({V, 2}, floats),
               depths = at::empty({V}, floats), conics = at::empty({V, 3}, floats),
               extents = at::empty({V, 2}, floats);
  int64_t* rows = visible.data_ptr<int64_t>();
  float *xy = means2d.data_ptr<float>(), *z = depths.data_ptr<float>(), *k = conics.data_ptr<float>(),
        *e = extents.data_ptr<float>();
  parallel_dynamic(found.size(), 1, [&](int64_t block) {
    int64_t i = offsets[block];
    for (const Visible& v : found[block]) {
      rows[i] = v.row;
      z[i] = v.depth;
      std::copy(v.mean2d, v.mean2d + 2, xy + 2 * i);
      std::copy(v.conic, v.conic + 3, k + 3 * i);
      std::copy(v.extent, v.extent + 2, e + 2 * i);
      ++i;
    }
  });
  return {means2d, depths, conics, extents, visible};
}

std::tuple<Tensor, Tensor, Tensor> project_gaussians_backward(
    const Tensor& means, const Tensor& quats, const Tensor& scales, const Tensor& T_camera_map, double fx, double fy,
    double cx, double cy, int64_t width, int64_t height, const Tensor& visible, const Tensor& v_means2d,
    const Tensor& v_depths, const Tensor& v_conics) {
  check_gaussians(means, quats, scales, T_camera_map, fx, fy, width, height);
  check_tensor(visible, "visible", at::kLong, {-1});
  const int64_t N = means.size(0), V = visible.size(0);
  check_float(v_means2d, "v_means2d", {V, 2});
  check_float(v_depths, "v_depths", {V});
  check_float(v_conics, "v_conics", {V, 3});
  const int64_t* rows = visible.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < V; ++i) {
    TORCH_CHECK(rows[i] > (i ? rows[i - 1] : -1) && rows[i] < N, "visible: expected ascending rows below ", N);
  }
  const Camera camera(T_camera_map, fx, fy, cx, cy, width, height);
  const Tensor v_means = at::zeros_like(means), v_quats = at::zeros_like(quats), v_scales = at::zeros_like(scales);
  const float *m = means.const_data_ptr<float>(), *q = quats.const_data_ptr<float>();
  const float *s = scales.const_data_ptr<float>(), *v_xy = v_means2d.const_data_ptr<float>();
  const float *v_z = v_depths.const_data_ptr<float>(), *v_k = v_conics.const_data_ptr<float>();
  float *v_m = v_means.data_ptr<float>(), *v_q = v_quats.data_ptr<float>(), *v_s = v_scales.data_ptr<float>();
  at::parallel_for(0, V, 1024, [&](int64_t begin, int64_t end) {
    Projection p;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = rows[i];
      if (!project_one(camera, m + 3 * g, q + 4 * g, s + 3 * g, p)) continue;
      project_one_backward(camera, p, s + 3 * g, v_xy + 2 * i, v_z[i], v_k + 3 * i, v_m + 3 * g, v_q + 4 * g,
                           v_s + 3 * g);
    }
  });
  return {v_means, v_quats, v_scales};
}

}  // namespace panoptic_mapper
