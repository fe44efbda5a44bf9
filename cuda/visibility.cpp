// What a camera may see: checks, the CPU implementation, and the hand-over to the CUDA kernels.

#include "visibility.h"

#include <algorithm>
#include <string>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "device_errors.h"
#include "tensor_checks.h"

namespace panoptic_mapper {
namespace {

using at::Tensor;

constexpr int64_t kGrain = 4096;  // points that a thread takes at least
constexpr int64_t kStride = 16;   // of each so many points one is compared first: most objects are found by few

Tensor with_rows_side_by_side(const Tensor& t) { return t.stride(1) == 1 ? t : t.contiguous(); }

// The first point that a query holds ends the search, so that the order, not the result, follows the stride.
bool holds_any(const Ellipsoids& e, const float* ellipsoid) {
  for (int64_t start = 0; start < kStride; ++start) {
    for (int64_t i = start; i < e.num_rows; i += kStride) {
      if (holds(ellipsoid, e.means + e.rows[i] * e.mean_stride, e.chi2)) return true;
    }
  }
  return false;
}

}  // namespace

Tensor frustum_mask(const Tensor& means, const Tensor& T_camera_map, double fx, double fy, double cx, double cy,
                    int64_t width, int64_t height, double margin, double near_m, const std::optional<Tensor>& limits) {
  const at::Device device = means.device();
  check_on(means, "means", device, at::kFloat, {-1, 3});
  check_on(T_camera_map, "T_camera_map", device, at::kFloat, {4, 4});
  const Tensor points = with_rows_side_by_side(means), T = T_camera_map.contiguous();
  Frustum frustum{points.const_data_ptr<float>(), T.const_data_ptr<float>(), nullptr, points.size(0), points.stride(0),
                  {(float)fx, (float)fy, (float)cx, (float)cy, (float)width, (float)height},
                  (float)margin, (float)near_m, 0, 0};
  Tensor tiles;
  if (limits.has_value()) {
    check_on(*limits, "limits", device, at::kFloat, {-1, -1});
    TORCH_CHECK_VALUE(limits->numel() > 0, "limits: expected at least one tile, got " + sizes_text(limits->sizes()));
    tiles = limits->contiguous();
    frustum.limits = tiles.const_data_ptr<float>();
    frustum.limit_rows = (int)tiles.size(0), frustum.limit_columns = (int)tiles.size(1);
  }
  const Tensor mask = at::empty({points.size(0)}, points.options().dtype(at::kBool));
  bool* out = mask.data_ptr<bool>();
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (points.is_cuda()) {
    launch_frustum_mask(frustum, out, points.get_device());
    return mask;
  }
#endif
  at::parallel_for(0, points.size(0), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = is_candidate(frustum, i);
  });
  return mask;
}

Tensor holding_mask(const Tensor& means, const Tensor& rows, const Tensor& centers, const Tensor& quats,
                    const Tensor& log_scales, const Tensor& T_camera_map, double fx, double fy, double cx, double cy,
                    int64_t width, int64_t height, double chi2) {
  const at::Device device = means.device();
  check_on(means, "means", device, at::kFloat, {-1, 3});
  check_on(rows, "rows", device, at::kLong, {-1});
  check_on(centers, "centers", device, at::kFloat, {-1, 3});
  const int64_t Q = centers.size(0);
  check_on(quats, "quats", device, at::kFloat, {Q, 4});
  check_on(log_scales, "log_scales", device, at::kFloat, {Q, 3});
  check_on(T_camera_map, "T_camera_map", device, at::kFloat, {4, 4});
  const Tensor points = with_rows_side_by_side(means), c = with_rows_side_by_side(centers);
  const Tensor q = with_rows_side_by_side(quats), s = with_rows_side_by_side(log_scales);
  const Tensor T = T_camera_map.contiguous(), at_rows = rows.contiguous();
  const Ellipsoids e{points.const_data_ptr<float>(), c.const_data_ptr<float>(), q.const_data_ptr<float>(),
                     s.const_data_ptr<float>(), T.const_data_ptr<float>(), at_rows.const_data_ptr<int64_t>(),
                     points.size(0), rows.size(0), Q, points.stride(0), c.stride(0), q.stride(0), s.stride(0),
                     {(float)fx, (float)fy, (float)cx, (float)cy, (float)width, (float)height}, (float)chi2};
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (points.is_cuda()) {
    raise_device_errors();
    const Tensor prepared = at::empty({Q, kEllipsoidFloats}, points.options());
    const Tensor meets = at::empty({Q}, points.options().dtype(at::kBool)), found = at::zeros_like(meets);
    launch_holding_mask(e, prepared.data_ptr<float>(), meets.data_ptr<bool>(), found.data_ptr<bool>(),
                        points.get_device());
    return found;
  }
#endif
  const auto outside = std::find_if(e.rows, e.rows + e.num_rows, [&](int64_t r) { return r < 0 || r >= e.num_means; });
  TORCH_CHECK_INDEX(outside == e.rows + e.num_rows, "rows: expected rows of means, 0.." + std::to_string(e.num_means - 1));
  const Tensor mask = at::empty({Q}, points.options().dtype(at::kBool));
  bool* out = mask.data_ptr<bool>();
  at::parallel_for(0, Q, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float ellipsoid[kEllipsoidFloats];
      out[i] = prepare_ellipsoid(e, i, ellipsoid) && holds_any(e, ellipsoid);
    }
  });
  return mask;
}

}  // namespace panoptic_mapper
