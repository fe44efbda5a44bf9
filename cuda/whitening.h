// Whitening matrices of 3D Gaussians (operators `whitening_matrices` and its backward): A = S^-1 R^T of the covariance
// R S S^T R^T, so that |A x|^2 is the squared Mahalanobis norm of an offset x. R is that of the normalised quaternion.
//
// Contract: float32 on one device, CPU or CUDA; any strides; gradients reach both inputs. CUDA: current stream, no
// synchronisation, can be captured in a graph.
#pragma once

#include <cmath>
#include <cstdint>
#include <tuple>

#include <ATen/core/Tensor.h>

#include "device_code.h"

namespace panoptic_mapper {

// quats [Q, 4] wxyz, log_scales [Q, 3] of standard deviations -> [Q, 3, 3].
at::Tensor whitening_matrices(const at::Tensor& quats, const at::Tensor& log_scales);

// Gradients of quats [Q, 4] and log_scales [Q, 3] from that of the matrices [Q, 3, 3].
std::tuple<at::Tensor, at::Tensor> whitening_matrices_backward(const at::Tensor& v_whitenings, const at::Tensor& quats,
                                                               const at::Tensor& log_scales);

struct UnitQuaternion {
  float w, x, y, z, norm;

  PM_DEVICE explicit UnitQuaternion(const float* q) {
    norm = fmaxf(sqrtf(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]), 1e-12f);
    w = q[0] / norm, x = q[1] / norm, y = q[2] / norm, z = q[3] / norm;
  }
};

// A [3, 3] of a quaternion [4] and log scales [3].
PM_DEVICE inline void whitening_matrix(const float* quat, const float* log_scale, float* A) {
  const UnitQuaternion q(quat);
  const float R_transposed[9] = {
      1 - 2 * (q.y * q.y + q.z * q.z), 2 * (q.x * q.y + q.w * q.z), 2 * (q.x * q.z - q.w * q.y),
      2 * (q.x * q.y - q.w * q.z), 1 - 2 * (q.x * q.x + q.z * q.z), 2 * (q.y * q.z + q.w * q.x),
      2 * (q.x * q.z + q.w * q.y), 2 * (q.y * q.z - q.w * q.x), 1 - 2 * (q.x * q.x + q.y * q.y)};
  for (int i = 0; i < 3; ++i) {
    const float inverse = expf(-log_scale[i]);
    for (int j = 0; j < 3; ++j) A[3 * i + j] = inverse * R_transposed[3 * i + j];
  }
}

PM_DEVICE inline void whitening_matrix_backward(const float* quat, const float* log_scale, const float* v_A,
                                                float* v_quat, float* v_log_scale) {
  float A[9], G[9];  // G: the gradient of R^T
  whitening_matrix(quat, log_scale, A);
  for (int i = 0; i < 3; ++i) {
    const float inverse = expf(-log_scale[i]);
    v_log_scale[i] = 0;
    for (int j = 0; j < 3; ++j) {
      G[3 * i + j] = inverse * v_A[3 * i + j];
      v_log_scale[i] -= v_A[3 * i + j] * A[3 * i + j];
    }
  }
  const UnitQuaternion q(quat);
  const float w = q.w, x = q.x, y = q.y, z = q.z;
  const float v[4] = {
      2 * (z * (G[1] - G[3]) + y * (G[6] - G[2]) + x * (G[5] - G[7])),
      2 * (y * (G[1] + G[3]) + z * (G[2] + G[6]) + w * (G[5] - G[7]) - 2 * x * (G[4] + G[8])),
      2 * (x * (G[1] + G[3]) + z * (G[5] + G[7]) + w * (G[6] - G[2]) - 2 * y * (G[0] + G[8])),
      2 * (x * (G[2] + G[6]) + y * (G[5] + G[7]) + w * (G[1] - G[3]) - 2 * z * (G[0] + G[4]))};
  const float along = v[0] * w + v[1] * x + v[2] * y + v[3] * z;  // changes only the norm
  const float unit[4] = {w, x, y, z};
  for (int i = 0; i < 4; ++i) v_quat[i] = (v[i] - unit[i] * along) / q.norm;
}

// CUDA kernels (whitening_kernels.cu); all contiguous.
void launch_whitening_matrices(const float* quats, const float* log_scales, float* whitenings, int64_t Q, int device);
void launch_whitening_matrices_backward(const float* v_whitenings, const float* quats, const float* log_scales,
                                        float* v_quats, float* v_log_scales, int64_t Q, int device);

}  // namespace panoptic_mapper
