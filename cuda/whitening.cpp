// Whitening matrices: checks, the CPU implementation, and the hand-over to the CUDA kernels.

#include "whitening.h"

#include <ATen/Functions.h>

#include "tensor_checks.h"

namespace panoptic_mapper {
namespace {

using at::Tensor;

void check_gaussians(const Tensor& quats, const Tensor& log_scales) {
  check_on(quats, "quats", quats.device(), at::kFloat, {-1, 4});
  check_on(log_scales, "log_scales", quats.device(), at::kFloat, {quats.size(0), 3});
}

}  // namespace

Tensor whitening_matrices(const Tensor& quats, const Tensor& log_scales) {
  check_gaussians(quats, log_scales);
  const int64_t Q = quats.size(0);
  const Tensor q = quats.contiguous(), s = log_scales.contiguous(), whitenings = at::empty({Q, 3, 3}, q.options());
  const float *quat = q.const_data_ptr<float>(), *log_scale = s.const_data_ptr<float>();
  float* A = whitenings.data_ptr<float>();
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (q.is_cuda()) {
    launch_whitening_matrices(quat, log_scale, A, Q, q.get_device());
    return whitenings;
  }
#endif
  for (int64_t i = 0; i < Q; ++i) whitening_matrix(quat + 4 * i, log_scale + 3 * i, A + 9 * i);
  return whitenings;
}

std::tuple<Tensor, Tensor> whitening_matrices_backward(const Tensor& v_whitenings, const Tensor& quats,
                                                       const Tensor& log_scales) {
  check_gaussians(quats, log_scales);
  const int64_t Q = quats.size(0);
  check_on(v_whitenings, "v_whitenings", quats.device(), at::kFloat, {Q, 3, 3});
  const Tensor v = v_whitenings.contiguous(), q = quats.contiguous(), s = log_scales.contiguous();
  const Tensor v_quats = at::empty({Q, 4}, q.options()), v_log_scales = at::empty({Q, 3}, q.options());
  const float *v_A = v.const_data_ptr<float>(), *quat = q.const_data_ptr<float>();
  const float* log_scale = s.const_data_ptr<float>();
  float *v_quat = v_quats.data_ptr<float>(), *v_log_scale = v_log_scales.data_ptr<float>();
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (q.is_cuda()) {
    launch_whitening_matrices_backward(v_A, quat, log_scale, v_quat, v_log_scale, Q, q.get_device());
    return {v_quats, v_log_scales};
  }
#endif
  for (int64_t i = 0; i < Q; ++i) {
    whitening_matrix_backward(quat + 4 * i, log_scale + 3 * i, v_A + 9 * i, v_quat + 4 * i, v_log_scale + 3 * i);
  }
  return {v_quats, v_log_scales};
}

}  // namespace panoptic_mapper
