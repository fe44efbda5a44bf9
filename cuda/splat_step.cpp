// A step on what a rasteriser draws: checks, the CPU implementation, and the hand-over to the CUDA kernels.

#include "splat_step.h"

#include <string>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "device_errors.h"
#include "tensor_checks.h"

namespace panoptic_mapper {
namespace {

using at::Tensor;

constexpr int64_t kGrain = 256;  // rows that a thread takes at least

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> splat_inputs(const Tensor& values, const Tensor& ids,
                                                                bool with_copies) {
  check_on(values, "values", values.device(), at::kFloat, {-1, kSplatWidth});
  check_rows(values, ids);
  const int64_t V = ids.size(0);
  const int num_features = with_copies ? kCopies + 4 : kCopies + 1;
  const auto empty = [&](at::IntArrayRef sizes) { return at::empty(sizes, values.options()); };
  const Tensor means = empty({V, 3}), quats = empty({V, 4}), scales = empty({V, 3}), opacities = empty({V}),
               features = empty({V, num_features}), rows = ids.contiguous();
  const SplatInputs in{values.const_data_ptr<float>(), rows.const_data_ptr<int64_t>(), values.size(0), V,
                       means.data_ptr<float>(), quats.data_ptr<float>(), scales.data_ptr<float>(),
                       opacities.data_ptr<float>(), features.data_ptr<float>(), num_features};
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (values.is_cuda()) {
    raise_device_errors();
    launch_splat_inputs(in, values.get_device());
    return {means, quats, scales, opacities, features};
  }
#endif
  at::parallel_for(0, V, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int d = 0; d < kSplatWidth; ++d) write_splat_input(in, i, d, in.values[in.ids[i] * kSplatWidth + d]);
    }
  });
  return {means, quats, scales, opacities, features};
}

void splat_step_(Tensor values, Tensor moments, Tensor steps, const Tensor& ids,
                 const std::optional<Tensor>& is_valid, const Tensor& v_means, const Tensor& v_quats, const Tensor& v_scales, const Tensor& v_opacities, const Tensor& v_features,
                 const Tensor& rates, double beta_1, double beta_2, double epsilon, double max_scale, double v_excess,
                 double least_weight, double relaxation, double min_weight) {
  const at::Device device = values.device();
  check_on(values, "values", device, at::kFloat, {-1, kSplatWidth});
  check_rows(values, ids);
  const int64_t N = values.size(0), V = ids.size(0);
  check_on(moments, "moments", device, at::kFloat, {N, 2, kSplatWidth});
  check_on(steps, "steps", device, at::kFloat, {N});
  check_on(rates, "rates", device, at::kFloat, {kSplatWidth});
  TORCH_CHECK_VALUE(moments.is_contiguous() && steps.is_contiguous(), "moments, steps: expected contiguous tensors");
  if (is_valid.has_value()) check_on(*is_valid, "is_valid", device, at::kBool, {1});
  check_on(v_means, "v_means", device, at::kFloat, {V, 3});
  check_on(v_quats, "v_quats", device, at::kFloat, {V, 4});
  check_on(v_scales, "v_scales", device, at::kFloat, {V, 3});
  check_on(v_opacities, "v_opacities", device, at::kFloat, {V});
  check_on(v_features, "v_features", device, at::kFloat, {V, -1});
  const int least_features = relaxation > 0 ? kCopies + 3 : kCopies;
  TORCH_CHECK_VALUE(v_features.size(1) >= least_features, "v_features: expected at least " +
                                                              std::to_string(least_features) + " columns, got " +
                                                              std::to_string(v_features.size(1)));
  const Tensor rows = ids.contiguous(), rate = rates.contiguous(), means = v_means.contiguous(),
               quats = v_quats.contiguous(), scales = v_scales.contiguous(), opacities = v_opacities.contiguous(),
               features = v_features.contiguous();
  const SplatStep step{
      adam_rows(values, moments, steps, rows, nullptr, rate, beta_1, beta_2, epsilon),
      is_valid.has_value() ? is_valid->const_data_ptr<bool>() : nullptr, means.const_data_ptr<float>(),
      quats.const_data_ptr<float>(), scales.const_data_ptr<float>(), opacities.const_data_ptr<float>(),
      features.const_data_ptr<float>(), (int)features.size(1), (float)max_scale, (float)v_excess, (float)least_weight,
      (float)relaxation, (float)min_weight};
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (values.is_cuda()) {
    raise_device_errors();
    launch_splat_step(step, values.get_device());
    return;
  }
#endif
  if (step.is_valid != nullptr && !*step.is_valid) return;
  at::parallel_for(0, V, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = step.adam.ids[i];
      const float t = step.adam.steps[row] + 1;
      for (int d = 0; d < kSplatWidth; ++d) splat_element(step, i, row, d, t);
      if (step.features[i * step.num_features + kOnes] > step.least_weight) step.adam.steps[row] = t;
    }
  });
}

}  // namespace panoptic_mapper
