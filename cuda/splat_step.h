// A step on what a rasteriser draws of rows of the map (operators `splat_inputs` and `splat_step_`): what it is given, and
// what its gradients change, each in one pass over the rows.
//
// Contract
//   * A table is values [N, 14], moments [N, 2, 14] and steps [N] as in map_rows.h, with the columns means (3), quats (4),
//     log_scales (3), opacity_logits (1) and colors (3).
//   * ids [V] int64 are distinct rows. One outside of the table is an IndexError on the CPU; on CUDA nothing outside of a
//     tensor is touched, what was to be read there is NaN, and the IndexError comes later, see device_errors.h.
//   * `splat_inputs` gives means [V, 3], quats [V, 4], scales [V, 3] = exp(log_scales), opacities [V] =
//     1 / (1 + exp(-opacity_logits)) and features [V, F]: colors, 1, colors again `with_copies`, and 0, where the depth
//     belongs. F is 8 with copies, else 5.
//   * `splat_step_` takes the gradients v of these and, for rows of which the 1 has one of more than least_weight, makes the
//     step of adam_rows_ (map_rows.h) with
//         v_log_scales = (v_scales + v_excess [scales > max_scale]) scales     v_logits = v_opacities o (1 - o)
//     and then moves the colours of all rows of ids, with relaxation > 0, by what their copies say:
//         colors += relaxation v_copies / max(v_ones, min_weight)
//     Where is_valid [1] bool is given, and false, it changes nothing: what was drawn was not complete.
//   * CUDA: current stream, no synchronisation, can be captured in a graph. Results are bit-identical from run to run.
#pragma once

#include <optional>
#include <tuple>

#include "map_rows.h"

namespace panoptic_mapper {

constexpr int kMeans = 0, kQuats = 3, kLogScales = 7, kLogits = 10, kColors = 11, kSplatWidth = 14;
constexpr int kOnes = 3, kCopies = 4;  // of features, behind the colours

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> splat_inputs(const at::Tensor& values,
                                                                                    const at::Tensor& ids,
                                                                                    bool with_copies);

void splat_step_(at::Tensor values, at::Tensor moments, at::Tensor steps, const at::Tensor& ids,
                 const std::optional<at::Tensor>& is_valid, const at::Tensor& v_means, const at::Tensor& v_quats, const at::Tensor& v_scales, const at::Tensor& v_opacities,
                 const at::Tensor& v_features, const at::Tensor& rates, double beta_1, double beta_2, double epsilon,
                 double max_scale, double v_excess, double least_weight, double relaxation, double min_weight);

struct SplatInputs {
  const float* values;
  const int64_t* ids;
  int64_t num_rows, num_ids;
  float *means, *quats, *scales, *opacities, *features;
  int num_features;
};

PM_DEVICE inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// Writes what element d of a row, of this value, is to the rasteriser.
PM_DEVICE inline void write_splat_input(const SplatInputs& in, int64_t i, int d, float value) {
  if (d < kQuats) {
    in.means[3 * i + d] = value;
  } else if (d < kLogScales) {
    in.quats[4 * i + d - kQuats] = value;
  } else if (d < kLogits) {
    in.scales[3 * i + d - kLogScales] = expf(value);
  } else if (d < kColors) {
    in.opacities[i] = sigmoid(value);
    in.features[i * in.num_features + kOnes] = 1;
    in.features[i * in.num_features + in.num_features - 1] = 0;
  } else {
    float* feature = in.features + i * in.num_features + d - kColors;
    feature[0] = value;
    if (in.num_features > kCopies + 1) feature[kCopies] = value;
  }
}

struct SplatStep {
  AdamRows adam;
  const bool* is_valid;  // null = it is
  const float *means, *quats, *scales, *opacities, *features;  // gradients
  int num_features;
  float max_scale, v_excess, least_weight, relaxation, min_weight;
};

// The gradient to element d of a row that has this value.
PM_DEVICE inline float splat_gradient(const SplatStep& s, int64_t i, int d, float value) {
  if (d < kQuats) return s.means[3 * i + d];
  if (d < kLogScales) return s.quats[4 * i + d - kQuats];
  if (d < kLogits) {
    const float scale = expf(value);
    return (s.scales[3 * i + d - kLogScales] + (scale > s.max_scale ? s.v_excess : 0.0f)) * scale;
  }
  if (d < kColors) {
    const float opacity = sigmoid(value);
    return s.opacities[i] * opacity * (1 - opacity);
  }
  return s.features[i * s.num_features + d - kColors];
}

// Element d of a row in a step, the t-th one that it takes, if it takes it.
PM_DEVICE inline void splat_element(const SplatStep& s, int64_t i, int64_t row, int d, float t) {
  const float* v_feature = s.features + i * s.num_features;
  float* value = s.adam.values + row * kSplatWidth + d;
  if (v_feature[kOnes] > s.least_weight) {
    adam_element(s.adam, kSplatWidth, row, d, t, splat_gradient(s, i, d, *value));
  }
  if (d >= kColors && s.relaxation > 0) {
    *value += s.relaxation * v_feature[kCopies + d - kColors] / fmaxf(v_feature[kOnes], s.min_weight);
  }
}

// CUDA kernels (splat_step_kernels.cu).
void launch_splat_inputs(const SplatInputs& inputs, int device);
void launch_splat_step(const SplatStep& step, int device);

}  // namespace panoptic_mapper
