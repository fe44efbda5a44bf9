// Targets and losses of labels: checks, the CPU implementation, and the hand-over to the CUDA kernels.

#include "label_losses.h"

#include <algorithm>
#include <string>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "tensor_checks.h"

namespace panoptic_mapper {
namespace {

using at::Tensor;

constexpr int64_t kChunk = 4096;  // pixels whose sums are one partial sum, whatever the number of threads

// The arguments, checked, and kept alive while `images` points to them.
struct LossArguments {
  Tensor masks, logs, panoptic_targets, semantic_targets, weights;
  LabelImages images;

  LossArguments(const Tensor& m, const Tensor& l, const Tensor& pt, const Tensor& st, const Tensor& w, int64_t S) {
    const at::Device device = m.device();
    check_on(m, "masks", device, at::kFloat, {-1, -1, -1});
    const int64_t H = m.size(0), W = m.size(1), Q = m.size(2), P = S + 1 + Q;
    check_on(l, "logs", device, at::kFloat, {H, W, -1});
    check_on(pt, "panoptic_targets", device, at::kLong, {H, W});
    check_on(st, "semantic_targets", device, at::kLong, {H, W});
    check_on(w, "weights", device, at::kFloat, {H, W});
    TORCH_CHECK_VALUE(S >= 0, "num_stuff: expected at least 0, got " + std::to_string(S));
    TORCH_CHECK_VALUE(l.size(2) >= P && l.size(2) < (1 << 24),
                      "logs: expected at least " + std::to_string(P) + " columns, of stuff, none, and the masks, got " +
                          std::to_string(l.size(2)));
    masks = m.contiguous(), logs = l.contiguous(), weights = w.contiguous();
    panoptic_targets = pt.contiguous(), semantic_targets = st.contiguous();
    images = {masks.const_data_ptr<float>(), logs.const_data_ptr<float>(), weights.const_data_ptr<float>(),
              panoptic_targets.const_data_ptr<int64_t>(), semantic_targets.const_data_ptr<int64_t>(),
              H * W, (int)Q, (int)(l.size(2) - P), (int)S};
  }
};

void add_pixel(const LabelImages& im, int64_t pixel, float* sums) {
  const int Q = im.Q, semantic = im.semantic_column(pixel), panoptic = im.panoptic_column(pixel);
  const float weight = im.weights[pixel], *logs = im.logs + pixel * im.num_logs();
  if (semantic >= 0) sums[0] += weight * logs[semantic], sums[1] += weight;
  if (panoptic >= 0) sums[2] += weight * logs[panoptic], sums[3] += weight;
  const float* masks = im.masks + pixel * im.Q;
  float* of_queries = sums + LabelImages::kPixelSums;
  const int query = im.query_of(pixel);
  if (query >= 0) of_queries[query] += masks[query], of_queries[Q + query] += 1;
  if (!im.is_told(pixel)) return;
  for (int q = 0; q < Q; ++q) of_queries[2 * Q + q] += masks[q];
}

void losses_of(const LabelImages& im, const float* sums, float* losses) {
  losses[0] = -sums[0] / at_least_one(sums[1]);
  losses[1] = -sums[2] / at_least_one(sums[3]);
  float total = 0, num_matched = 0;
  for (int q = 0; q < im.Q; ++q) {
    const DiceOf dice(sums, im.Q, q);
    total += dice.value, num_matched += dice.is_matched;
  }
  losses[2] = total / at_least_one(num_matched);
}

void losses_on_cpu(const LabelImages& im, float* sums, float* losses) {
  const int64_t num_chunks = (im.num_pixels + kChunk - 1) / kChunk, num_sums = im.num_sums();
  std::vector<float> partials(num_chunks * num_sums);
  at::parallel_for(0, num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t last = std::min((chunk + 1) * kChunk, im.num_pixels);
      for (int64_t pixel = chunk * kChunk; pixel < last; ++pixel) add_pixel(im, pixel, partials.data() + chunk * num_sums);
    }
  });
  for (int64_t i = 0; i < num_sums; ++i) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) sum += partials[chunk * num_sums + i];
    sums[i] = (float)sum;
  }
  losses_of(im, sums, losses);
}

void backward_on_cpu(const LabelImages& im, const float* v, const float* sums, float* v_masks, float* v_logs) {
  const int Q = im.Q, L = im.num_logs();
  std::vector<float> of_mask(Q), of_intersection(Q);
  float num_matched = 0;
  for (int q = 0; q < Q; ++q) num_matched += DiceOf(sums, Q, q).is_matched;
  for (int q = 0; q < Q; ++q) {
    const DiceOf dice(sums, Q, q);
    of_mask[q] = v[2] * dice.of_mask / at_least_one(num_matched);
    of_intersection[q] = v[2] * dice.of_intersection / at_least_one(num_matched);
  }
  at::parallel_for(0, im.num_pixels, kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      float *masks = v_masks + pixel * Q, *logs = v_logs + pixel * L;
      std::fill_n(masks, Q, 0.0f);
      std::fill_n(logs, L, 0.0f);
      if (im.is_told(pixel)) std::copy_n(of_mask.data(), Q, masks);
      if (const int query = im.query_of(pixel); query >= 0) masks[query] += of_intersection[query];
      for (const int column : {im.semantic_column(pixel), im.panoptic_column(pixel)}) {
        if (column >= 0) logs[column] = v_log_at(im, v, sums, pixel, column);
      }
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> label_targets(const Tensor& mask_index, const Tensor& semantic,
                                                 const std::optional<Tensor>& disputed, const Tensor& confidence,
                                                 const Tensor& mask_rows, const Tensor& mask_classes,
                                                 const Tensor& mask_factors, const Tensor& positions,
                                                 const Tensor& stuff_of_classes, const Tensor& semantic_of_classes,
                                                 int64_t first_query) {
  const at::Device device = mask_index.device();
  check_on(mask_index, "mask_index", device, at::kInt, {-1, -1});
  const int64_t H = mask_index.size(0), W = mask_index.size(1);
  check_on(semantic, "semantic", device, at::kInt, {H, W});
  check_on(confidence, "confidence", device, at::kFloat, {H, W});
  check_on(mask_rows, "mask_rows", device, at::kLong, {-1});
  const int64_t K = mask_rows.size(0);
  check_on(mask_classes, "mask_classes", device, at::kLong, {K});
  check_on(mask_factors, "mask_factors", device, at::kFloat, {K});
  check_on(positions, "positions", device, at::kLong, {-1});
  check_on(stuff_of_classes, "stuff_of_classes", device, at::kLong, {-1});
  check_on(semantic_of_classes, "semantic_of_classes", device, at::kLong, {stuff_of_classes.size(0)});
  const Tensor rows = mask_rows.contiguous(), classes = mask_classes.contiguous(), factors = mask_factors.contiguous();
  const Tensor place = positions.contiguous(), stuff = stuff_of_classes.contiguous();
  const Tensor column = semantic_of_classes.contiguous();
  TargetImages images{mask_index.const_data_ptr<int32_t>(), semantic.const_data_ptr<int32_t>(), nullptr,
                      confidence.const_data_ptr<float>(), factors.const_data_ptr<float>(),
                      rows.const_data_ptr<int64_t>(), classes.const_data_ptr<int64_t>(),
                      place.const_data_ptr<int64_t>(), stuff.const_data_ptr<int64_t>(), column.const_data_ptr<int64_t>(),
                      H, W, K, place.size(0), stuff.size(0), first_query,
                      {mask_index.stride(0), mask_index.stride(1)}, {semantic.stride(0), semantic.stride(1)}, {0, 0},
                      {confidence.stride(0), confidence.stride(1)}};
  if (disputed.has_value()) {
    check_on(*disputed, "disputed", device, at::kBool, {H, W});
    images.disputed = disputed->const_data_ptr<bool>();
    images.disputed_strides[0] = disputed->stride(0), images.disputed_strides[1] = disputed->stride(1);
  }
  const Tensor panoptic_targets = at::empty({H, W}, rows.options()), semantic_targets = at::empty({H, W}, rows.options());
  const Tensor weights = at::empty({H, W}, confidence.options());
  int64_t *p = panoptic_targets.data_ptr<int64_t>(), *s = semantic_targets.data_ptr<int64_t>();
  float* w = weights.data_ptr<float>();
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (mask_index.is_cuda()) {
    launch_label_targets(images, p, s, w, mask_index.get_device());
    return {panoptic_targets, semantic_targets, weights};
  }
#endif
  at::parallel_for(0, H, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * W; i < end * W; ++i) {
      const PixelTarget target = find_label_target(images, i / W, i % W);
      p[i] = target.panoptic, s[i] = target.semantic, w[i] = target.weight;
    }
  });
  return {panoptic_targets, semantic_targets, weights};
}

std::tuple<Tensor, Tensor> label_losses(const Tensor& masks, const Tensor& logs, const Tensor& panoptic_targets,
                                        const Tensor& semantic_targets, const Tensor& weights, int64_t num_stuff) {
  const LossArguments a(masks, logs, panoptic_targets, semantic_targets, weights, num_stuff);
  const Tensor losses = at::empty({3}, masks.options()), sums = at::empty({a.images.num_sums()}, masks.options());
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (masks.is_cuda()) {
    const int64_t blocks = label_losses_blocks(a.images.num_pixels);
    const Tensor partials = at::empty({blocks, a.images.num_sums()}, masks.options());
    launch_label_losses(a.images, blocks, partials.data_ptr<float>(), sums.data_ptr<float>(), losses.data_ptr<float>(),
                        masks.get_device());
    return {losses, sums};
  }
#endif
  losses_on_cpu(a.images, sums.data_ptr<float>(), losses.data_ptr<float>());
  return {losses, sums};
}

std::tuple<Tensor, Tensor> label_losses_backward(const Tensor& v_losses, const Tensor& sums, const Tensor& masks,
                                                 const Tensor& logs, const Tensor& panoptic_targets,
                                                 const Tensor& semantic_targets, const Tensor& weights,
                                                 int64_t num_stuff) {
  const LossArguments a(masks, logs, panoptic_targets, semantic_targets, weights, num_stuff);
  check_on(v_losses, "v_losses", masks.device(), at::kFloat, {3});
  check_on(sums, "sums", masks.device(), at::kFloat, {a.images.num_sums()});
  const Tensor v = v_losses.contiguous(), s = sums.contiguous();
  const Tensor v_masks = at::empty(masks.sizes(), masks.options()), v_logs = at::empty(logs.sizes(), logs.options());
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (masks.is_cuda()) {
    launch_label_losses_backward(a.images, v.const_data_ptr<float>(), s.const_data_ptr<float>(),
                                 v_masks.data_ptr<float>(), v_logs.data_ptr<float>(), masks.get_device());
    return {v_masks, v_logs};
  }
#endif
  backward_on_cpu(a.images, v.const_data_ptr<float>(), s.const_data_ptr<float>(), v_masks.data_ptr<float>(),
                  v_logs.data_ptr<float>());
  return {v_masks, v_logs};
}

}  // namespace panoptic_mapper
