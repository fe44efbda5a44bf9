// What a keyframe's 2D labels ask of a view's label images (operators `label_targets`, `label_losses` and its backward).
//
// Columns: panoptic targets are of [stuff classes (S) | unassigned thing | queries in view (Q)], P = S + 1 + Q. Images of
// logarithms have these and then the thing classes (T), masks M only the queries. A semantic target s means column s of
// the stuff classes where s < S, and column P + s - S of the logarithms else.
//
//     semantic = -sum_u w(u) log_p(u, s(u)) / max(sum_u w(u), 1)       over the pixels u with a target; panoptic likewise
//     dice     = mean over the queries q that are the target of some pixel, of 1 - (2 I_q + 1) / (T_q + M_q + 1)
//     I_q = sum of M(u, q) where q is the target     T_q = number of these pixels     M_q = sum of M(u, q) where there is an s(u)
//
// Contract
//   * Images are float32 on one device, CPU or CUDA; targets int64, -1 = none. Those of label_targets may have any strides
//     along rows and columns; others that are not contiguous are copied. Empty inputs are valid.
//   * A target outside of its columns counts as none. Numbers of masks and rows outside of their tables likewise.
//   * Gradients reach the masks and the logarithms.
//   * Memory beside outputs: some numbers per block of threads and query. Sums have one order: bit-identical from run to
//     run. CUDA: current stream, no synchronisation, can be captured in a graph.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include <ATen/core/Tensor.h>

#include "device_code.h"

namespace panoptic_mapper {

// Targets of the pixels of a keyframe.
// In: mask_index, semantic [H, W] int32, disputed [H, W] bool or none, confidence [H, W]; tables of the masks: mask_rows
//     (query row, -1 = none) and mask_classes [K + 1] int64, mask_factors [K + 1]; positions [R] int64: place in the view
//     of each query row, -1 = not in it; stuff_of_classes, semantic_of_classes [C] int64: columns, -1 = none.
// Out: panoptic and semantic targets [H, W] int64, weights [H, W]: confidence times the factor of the pixel's mask.
std::tuple<at::Tensor, at::Tensor, at::Tensor> label_targets(
    const at::Tensor& mask_index, const at::Tensor& semantic, const std::optional<at::Tensor>& disputed,
    const at::Tensor& confidence, const at::Tensor& mask_rows, const at::Tensor& mask_classes,
    const at::Tensor& mask_factors, const at::Tensor& positions, const at::Tensor& stuff_of_classes,
    const at::Tensor& semantic_of_classes, int64_t first_query);

// In: masks [H, W, Q], logs [H, W, P + T], targets and weights as above.
// Out: losses [3]: semantic, panoptic, dice; sums [4 + 3 Q] that the backward pass needs.
std::tuple<at::Tensor, at::Tensor> label_losses(const at::Tensor& masks, const at::Tensor& logs,
                                                const at::Tensor& panoptic_targets, const at::Tensor& semantic_targets,
                                                const at::Tensor& weights, int64_t num_stuff);

// Gradients of masks and logs.
std::tuple<at::Tensor, at::Tensor> label_losses_backward(
    const at::Tensor& v_losses, const at::Tensor& sums, const at::Tensor& masks, const at::Tensor& logs,
    const at::Tensor& panoptic_targets, const at::Tensor& semantic_targets, const at::Tensor& weights,
    int64_t num_stuff);

struct TargetImages {
  const int32_t *mask_index, *semantic;
  const bool* disputed;  // null = none
  const float *confidence, *mask_factors;
  const int64_t *mask_rows, *mask_classes, *positions, *stuff_of_classes, *semantic_of_classes;
  int64_t height, width, num_masks, num_rows, num_classes, first_query;
  int64_t mask_strides[2], semantic_strides[2], disputed_strides[2], confidence_strides[2];
};

struct PixelTarget {
  int64_t panoptic, semantic;
  float weight;
};

PM_DEVICE inline PixelTarget find_label_target(const TargetImages& t, int64_t row, int64_t column) {
  const int64_t k = t.mask_index[row * t.mask_strides[0] + column * t.mask_strides[1]];
  int64_t c = t.semantic[row * t.semantic_strides[0] + column * t.semantic_strides[1]];
  const bool is_disputed = t.disputed != nullptr && t.disputed[row * t.disputed_strides[0] + column * t.disputed_strides[1]];
  const bool is_mask = k > 0 && k < t.num_masks;
  PixelTarget target{-1, -1, t.confidence[row * t.confidence_strides[0] + column * t.confidence_strides[1]]};
  if (is_mask) {
    target.weight *= t.mask_factors[k];
    c = t.mask_classes[k];
    const int64_t query = t.mask_rows[k];
    const int64_t position = query >= 0 && query < t.num_rows ? t.positions[query] : -1;
    if (position >= 0 && !is_disputed) target.panoptic = t.first_query + position;
  }
  if (is_disputed || c < 0 || c >= t.num_classes) return target;
  target.semantic = t.semantic_of_classes[c];
  if (!is_mask) target.panoptic = t.stuff_of_classes[c];
  return target;
}

struct LabelImages {
  const float *masks, *logs, *weights;
  const int64_t *panoptic_targets, *semantic_targets;
  int64_t num_pixels;
  int Q, T, S;

  PM_DEVICE int num_panoptic() const { return S + 1 + Q; }
  PM_DEVICE int first_query() const { return S + 1; }
  PM_DEVICE int num_logs() const { return num_panoptic() + T; }
  PM_DEVICE int num_sums() const { return kPixelSums + 3 * Q; }
  // The query that is the pixel's target, or -1.
  PM_DEVICE int query_of(int64_t pixel) const {
    const int64_t t = panoptic_targets[pixel];
    return t >= first_query() && t < num_panoptic() ? (int)(t - first_query()) : -1;
  }
  // The columns of the logarithms that are the pixel's targets, or -1.
  PM_DEVICE int panoptic_column(int64_t pixel) const {
    const int64_t t = panoptic_targets[pixel];
    return t >= 0 && t < num_panoptic() ? (int)t : -1;
  }
  PM_DEVICE int semantic_column(int64_t pixel) const {
    const int64_t t = semantic_targets[pixel];
    if (t < 0 || t >= S + T) return -1;
    return (int)(t < S ? t : num_panoptic() + t - S);
  }

  // Whether the labels tell what the pixel is: only then a mask there is for or against a query.
  PM_DEVICE bool is_told(int64_t pixel) const { return semantic_column(pixel) >= 0; }

  // Sums of all pixels: of w log p and of w, semantic, then panoptic. Sums of the queries follow: I, T, M.
  static constexpr int kPixelSums = 4;
};

// The losses of the sums: what a mean is over is bounded below by 1.
PM_DEVICE inline float at_least_one(float x) { return x < 1.0f ? 1.0f : x; }

struct DiceOf {  // of a query
  float value;  // 1 - dice; 0 where it is the target of no pixel
  float of_intersection, of_mask;  // derivatives
  bool is_matched;

  PM_DEVICE DiceOf(const float* sums, int num_queries, int q) {
    const float* of_queries = sums + LabelImages::kPixelSums;
    const float intersection = of_queries[q], target = of_queries[num_queries + q], mask = of_queries[2 * num_queries + q];
    const float both = target + mask + 1;
    is_matched = target > 0;
    value = is_matched ? 1 - (2 * intersection + 1) / both : 0;
    of_intersection = is_matched ? -2 / both : 0;
    of_mask = is_matched ? (2 * intersection + 1) / (both * both) : 0;
  }
};

// The derivative by one element of the logarithms; v: gradients of the three losses.
PM_DEVICE inline float v_log_at(const LabelImages& im, const float* v, const float* sums, int64_t pixel, int column) {
  float gradient = 0;
  if (column == im.semantic_column(pixel)) gradient -= v[0] * im.weights[pixel] / at_least_one(sums[1]);
  if (column == im.panoptic_column(pixel)) gradient -= v[1] * im.weights[pixel] / at_least_one(sums[3]);
  return gradient;
}

// The derivative by one element of the masks. num_matched: queries that are a target.
PM_DEVICE inline float v_mask_at(const LabelImages& im, const float* v, const float* sums, float num_matched, int64_t pixel,
                                 int q) {
  const DiceOf dice(sums, im.Q, q);
  float gradient = im.is_told(pixel) ? dice.of_mask : 0;
  if (im.query_of(pixel) == q) gradient += dice.of_intersection;
  return v[2] * gradient / at_least_one(num_matched);
}

// CUDA kernels (label_losses_kernels.cu). `partials` is float [label_losses_blocks(pixels), num_sums].
void launch_label_targets(const TargetImages& images, int64_t* panoptic, int64_t* semantic, float* weights, int device);
int64_t label_losses_blocks(int64_t num_pixels);
void launch_label_losses(const LabelImages& images, int64_t blocks, float* partials, float* sums, float* losses,
                         int device);
void launch_label_losses_backward(const LabelImages& images, const float* v_losses, const float* sums,
                                  float* v_masks, float* v_logs, int device);

}  // namespace panoptic_mapper
