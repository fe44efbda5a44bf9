// Label warping: checks, the CPU implementation, and the hand-over to the CUDA kernels.

#include "label_warp.h"

#include <algorithm>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "device_errors.h"
#include "tensor_checks.h"

namespace panoptic_mapper {
namespace {

using at::Tensor;

Tensor with_channels_side_by_side(const Tensor& image) {
  return image.size(2) <= 1 || image.stride(2) == 1 ? image : image.contiguous();
}

// The arguments, checked, and kept alive while `images` points to them.
struct WarpArguments {
  Tensor probabilities, depth, intrinsics, targets, target_depth, target_intrinsics, T;
  WarpImages images;

  WarpArguments(const Tensor& p, const Tensor& d, const Tensor& k, const Tensor& q, const Tensor& td,
                const Tensor& tk, const Tensor& T_target_source) {
    TORCH_CHECK(p.dim() == 3, "probabilities: expected [H, W, K], got " + sizes_text(p.sizes()));
    const at::Device device = p.device();
    const int64_t H = p.size(0), W = p.size(1), K = p.size(2);
    check_on(p, "probabilities", device, at::kFloat, {-1, -1, -1});
    check_on(d, "depth", device, at::kFloat, {H, W});
    check_on(k, "intrinsics", device, at::kFloat, {4});
    check_on(q, "targets", device, at::kFloat, {-1, -1, K});
    check_on(td, "target_depth", device, at::kFloat, {q.size(0), q.size(1)});
    check_on(tk, "target_intrinsics", device, at::kFloat, {4});
    check_on(T_target_source, "T_target_source", device, at::kFloat, {4, 4});
    constexpr int64_t most = 1 << 15;  // whole numbers up to here, and half pixels, are exact
    TORCH_CHECK(H <= most && W <= most && q.size(0) <= most && q.size(1) <= most,
                "probabilities, targets: expected at most " + std::to_string(most) + " pixels along an axis, got " +
                    sizes_text(p.sizes()) + " and " + sizes_text(q.sizes()));
    probabilities = with_channels_side_by_side(p);
    targets = with_channels_side_by_side(q);
    depth = d, target_depth = td;
    intrinsics = k.contiguous(), target_intrinsics = tk.contiguous(), T = T_target_source.contiguous();
    images = {probabilities.const_data_ptr<float>(), depth.const_data_ptr<float>(), intrinsics.const_data_ptr<float>(),
              targets.const_data_ptr<float>(), target_depth.const_data_ptr<float>(),
              target_intrinsics.const_data_ptr<float>(), T.const_data_ptr<float>(),
              H, W, q.size(0), q.size(1), K,
              probabilities.stride(0), probabilities.stride(1), depth.stride(0), depth.stride(1),
              targets.stride(0), targets.stride(1), target_depth.stride(0), target_depth.stride(1)};
  }
};

void warp_on_cpu(const WarpImages& w, float* loss, float* mass) {
  const WarpCamera camera(w);
  std::vector<double> sums(2 * w.height);  // by rows: the order does not depend on the threads
  at::parallel_for(0, w.height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double log_sum = 0, weight_sum = 0;
      for (int64_t column = 0; column < w.width; ++column) {
        const int64_t target = find_target(w, camera, row, column);
        if (target < 0) continue;
        const float *p = w.probabilities + row * w.p_row + column * w.p_column, *q = w.targets + target;
        for (int64_t k = 0; k < w.channels; ++k) {
          if (q[k] == 0.0f) continue;
          log_sum += q[k] * std::log((p[k] < 0.0f ? 0.0f : p[k]) + kFloor);
          weight_sum += q[k];
        }
      }
      sums[2 * row] = log_sum, sums[2 * row + 1] = weight_sum;
    }
  });
  double log_sum = 0, weight_sum = 0;
  for (int64_t row = 0; row < w.height; ++row) log_sum += sums[2 * row], weight_sum += sums[2 * row + 1];
  *loss = (float)(0.0 - log_sum / (weight_sum < 1.0 ? 1.0 : weight_sum));
  *mass = (float)weight_sum;
}

void warp_backward_on_cpu(const WarpImages& w, float v_loss, float mass, float* v_probabilities) {
  const WarpCamera camera(w);
  const float scale = -v_loss / (mass < 1.0f ? 1.0f : mass);
  at::parallel_for(0, w.height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t column = 0; column < w.width; ++column) {
        float* out = v_probabilities + (row * w.width + column) * w.channels;
        const int64_t target = find_target(w, camera, row, column);
        if (target < 0) {
          std::fill_n(out, w.channels, 0.0f);
          continue;
        }
        const float *p = w.probabilities + row * w.p_row + column * w.p_column, *q = w.targets + target;
        for (int64_t k = 0; k < w.channels; ++k) {
          out[k] = q[k] != 0.0f && p[k] >= 0.0f ? scale * q[k] / (p[k] + kFloor) : 0.0f;
        }
      }
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor> label_warp(const Tensor& probabilities, const Tensor& depth, const Tensor& intrinsics,
                                      const Tensor& targets, const Tensor& target_depth,
                                      const Tensor& target_intrinsics, const Tensor& T_target_source) {
  const WarpArguments a(probabilities, depth, intrinsics, targets, target_depth, target_intrinsics, T_target_source);
  const Tensor loss = at::empty({}, probabilities.options()), mass = at::empty({}, probabilities.options());
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (probabilities.is_cuda()) {
    raise_device_errors();
    const int device = probabilities.get_device();
    const int64_t blocks = label_warp_blocks(a.images.height * a.images.width, device);
    const Tensor partials = at::empty({blocks, 2}, probabilities.options().dtype(at::kDouble));
    launch_label_warp(a.images, partials.data_ptr<double>(), loss.data_ptr<float>(), mass.data_ptr<float>(), device);
    return {loss, mass};
  }
#endif
  warp_on_cpu(a.images, loss.data_ptr<float>(), mass.data_ptr<float>());
  return {loss, mass};
}

Tensor label_warp_backward(const Tensor& v_loss, const Tensor& mass, const Tensor& probabilities, const Tensor& depth,
                           const Tensor& intrinsics, const Tensor& targets, const Tensor& target_depth,
                           const Tensor& target_intrinsics, const Tensor& T_target_source) {
  const WarpArguments a(probabilities, depth, intrinsics, targets, target_depth, target_intrinsics, T_target_source);
  check_on(v_loss, "v_loss", probabilities.device(), at::kFloat, {});
  check_on(mass, "mass", probabilities.device(), at::kFloat, {});
  const Tensor v_probabilities = at::empty(probabilities.sizes(), probabilities.options());
  float* out = v_probabilities.data_ptr<float>();
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (probabilities.is_cuda()) {
    raise_device_errors();
    launch_label_warp_backward(a.images, v_loss.const_data_ptr<float>(), mass.const_data_ptr<float>(), out,
                               probabilities.get_device());
    return v_probabilities;
  }
#endif
  warp_backward_on_cpu(a.images, *v_loss.const_data_ptr<float>(), *mass.const_data_ptr<float>(), out);
  return v_probabilities;
}

}  // namespace panoptic_mapper
