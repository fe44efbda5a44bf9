// Losses of images: checks, the CPU implementation, and the hand-over to the CUDA kernels.

#include "image_losses.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "tensor_checks.h"

namespace panoptic_mapper {
namespace {

using at::Tensor;

constexpr int64_t kChunk = 4096;  // pixels, or windows, whose sums are one partial sum, whatever the number of threads

template <typename Add>
void add_chunks(int64_t num, float* sums, const Add& add) {
  const int64_t num_chunks = (num + kChunk - 1) / kChunk;
  std::vector<float> partials(num_chunks * kSums);
  at::parallel_for(0, num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      for (int64_t i = chunk * kChunk; i < std::min((chunk + 1) * kChunk, num); ++i) add(i, &partials[chunk * kSums]);
    }
  });
  for (int i = 0; i < kSums; ++i) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) sum += partials[chunk * kSums + i];
    sums[i] += (float)sum;
  }
}

void losses_on_cpu(const LossImages& im, WindowGradient* windows, float* terms, float* v_image, float* v_alpha) {
  float sums[kSums] = {};
  add_chunks(im.num_pixels(), sums, [&](int64_t pixel, float* partial) { add_image_pixel(im, pixel, partial); });
  if (im.ssim_share > 0) {
    add_chunks(3 * im.num_windows(), sums, [&](int64_t i, float* partial) {
      partial[kSsimSum] += window_ssim(im, i / 3, (int)(i % 3), windows[i]);
    });
  }
  losses_of_sums(im, sums, terms);
  at::parallel_for(0, im.num_pixels(), kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel) write_image_gradients(im, sums, windows, pixel, v_image, v_alpha);
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> image_losses(const Tensor& image, const Tensor& alpha, const Tensor& observed_color,
                                                const Tensor& observed_depth, double color_weight, double depth_weight,
                                                double opacity_weight, double ssim_share, double min_depth,
                                                double max_depth, double count, double error_scale) {
  const at::Device device = image.device();
  check_on(image, "image", device, at::kFloat, {-1, -1, -1});
  const int64_t H = image.size(0), W = image.size(1), F = image.size(2);
  TORCH_CHECK_VALUE(F == 5 || F == 8, "image: expected 5 or 8 features, got " + std::to_string(F));
  TORCH_CHECK_VALUE(H > 0 && W > 0, "image: expected at least one pixel, got " + sizes_text(image.sizes()));
  check_on(alpha, "alpha", device, at::kFloat, {H, W});
  check_on(observed_color, "observed_color", device, at::kByte, {H, W, 3});
  check_on(observed_depth, "observed_depth", device, at::kFloat, {H, W});
  const Tensor drawn = image.contiguous(), a = alpha.contiguous(), color = observed_color.contiguous(),
               depth = observed_depth.contiguous();
  const int window = (int)std::min({(int64_t)kWindow, H, W});
  const LossImages im{drawn.const_data_ptr<float>(), a.const_data_ptr<float>(), depth.const_data_ptr<float>(),
                      color.const_data_ptr<uint8_t>(), (int)H, (int)W, (int)F, (float)color_weight, (float)depth_weight,
                      (float)opacity_weight, (float)ssim_share, (float)min_depth, (float)max_depth, (float)count,
                      (float)error_scale, window, (int)((H - window) / kWindowStride + 1),
                      (int)((W - window) / kWindowStride + 1)};
  const auto empty = [&](at::IntArrayRef sizes) { return at::empty(sizes, image.options()); };
  const Tensor terms = empty({3}), v_image = empty({H, W, F}), v_alpha = empty({H, W});
  const Tensor windows = empty({ssim_share > 0 ? im.num_windows() : 0, 3, 3});
  auto* of_windows = reinterpret_cast<WindowGradient*>(windows.data_ptr<float>());
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (image.is_cuda()) {
    const int64_t blocks = image_losses_blocks(im);
    const Tensor partials = empty({blocks + 1, kSums});  // the last are the sums
    float* sums = partials.data_ptr<float>() + blocks * kSums;
    launch_image_losses(im, blocks, of_windows, partials.data_ptr<float>(), sums, terms.data_ptr<float>(),
                        v_image.data_ptr<float>(), v_alpha.data_ptr<float>(), image.get_device());
    return {terms, v_image, v_alpha};
  }
#endif
  losses_on_cpu(im, of_windows, terms.data_ptr<float>(), v_image.data_ptr<float>(), v_alpha.data_ptr<float>());
  return {terms, v_image, v_alpha};
}

}  // namespace panoptic_mapper
