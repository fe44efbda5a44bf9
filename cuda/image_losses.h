// What a keyframe's images say about those that were drawn of the map (operator `image_losses`): the terms of the loss and
// the gradient of their weighted sum, in one pass forward and one back.
//
// With c(u) = 1 where nothing stands right before the lens (no depth, or depth above min_depth), d(u) = 1 where depth was
// measured (between min_depth and max_depth), and the drawn colour C, alpha A, and depth Z = D / A of depths D summed up:
//
//     color   = (1 - ssim_share) mean |c C - c C'| + ssim_share (1 - SSIM(c C, c C'))
//     depth   = sum_u d(u) [A(u) > 0.5] |Z(u) - Z'(u)| / max(number of these pixels, 1)
//     opacity = sum_u d(u) (1 - A(u)) / max(number of these pixels, 1)
//
// SSIM (Wang et al. 2004) is the mean over the channels and over square windows of 8 pixels, every 4 pixels, with uniform
// weights: Gaussian ones at every pixel would cost more than the splatting. In an image that is smaller than a window, the
// window is as wide as the image's shorter side.
//
// Contract
//   * image [H, W, F] float32: C, what was a 1 of each Gaussian (its image is A), their colours again or not, and D; F is 5 or
//     8. alpha [H, W] float32 is A, 0 or at least kMinAlpha. observed_color [H, W, 3] uint8, observed_depth [H, W] float32 m, 0
//     = none. All on one device, CPU or CUDA, H and W at least 1.
//   * Out: terms [3]: color, depth, opacity; v_image [H, W, F] and v_alpha [H, W]: the gradients of the sum of
//     weights times terms, and of count times the mean of (1's image - A), which is 0 but has gradients: see
//     seen_counter.py. The gradient of colours that were drawn again is error_scale c (C' - C).
//   * Memory beside outputs: 27 numbers per window, 6 per block of threads. Sums have one order: bit-identical from run to
//     run. CUDA: current stream, no synchronisation, can be captured in a graph.
#pragma once

#include <cstdint>
#include <tuple>

#include <ATen/core/Tensor.h>

#include "device_code.h"

namespace panoptic_mapper {

std::tuple<at::Tensor, at::Tensor, at::Tensor> image_losses(const at::Tensor& image, const at::Tensor& alpha,
                                                            const at::Tensor& observed_color,
                                                            const at::Tensor& observed_depth, double color_weight,
                                                            double depth_weight, double opacity_weight, double ssim_share,
                                                            double min_depth, double max_depth, double count,
                                                            double error_scale);

constexpr int kWindow = 8, kWindowStride = 4;             // pixels
constexpr float kSsimC1 = 1e-4f, kSsimC2 = 9e-4f;         // (0.01)^2, (0.03)^2
constexpr float kLeastAlpha = 0.5f / 255.0f;              // half of kMinAlpha (rasterize.h): only turns 0 / 0 into 0
constexpr int kColorSum = 0, kSsimSum = 1, kDepthSum = 2, kNumCovered = 3, kOpacitySum = 4, kNumMeasured = 5, kSums = 6;

// How SSIM changes with the sums over a window of a colour, of its square, and of its product with the observed one.
struct WindowGradient {
  float of_sum, of_squares, of_products;
};

struct LossImages {
  const float *image, *alpha, *observed_depth;
  const uint8_t* observed_color;
  int height, width, num_features;
  float color_weight, depth_weight, opacity_weight, ssim_share, min_depth, max_depth, count, error_scale;
  int window, windows_y, windows_x;

  PM_DEVICE int64_t num_pixels() const { return (int64_t)height * width; }
  PM_DEVICE int64_t num_windows() const { return (int64_t)windows_y * windows_x; }  // times three channels
  PM_DEVICE bool is_counted(int64_t pixel) const { return observed_depth[pixel] <= 0 || observed_depth[pixel] > min_depth; }
  PM_DEVICE bool is_measured(int64_t pixel) const {
    return observed_depth[pixel] > min_depth && observed_depth[pixel] < max_depth;
  }
  PM_DEVICE float drawn(int64_t pixel, int channel) const { return image[pixel * num_features + channel]; }
  PM_DEVICE float observed(int64_t pixel, int channel) const { return observed_color[pixel * 3 + channel] / 255.0f; }
  PM_DEVICE float depth(int64_t pixel) const {
    return drawn(pixel, num_features - 1) / (alpha[pixel] > kLeastAlpha ? alpha[pixel] : kLeastAlpha);
  }
};

PM_DEVICE inline float sign_of(float x) { return (float)((x > 0) - (x < 0)); }

// Adds what a pixel says to the sums, but for SSIM.
PM_DEVICE inline void add_image_pixel(const LossImages& im, int64_t pixel, float* sums) {
  if (im.is_counted(pixel)) {
    for (int c = 0; c < 3; ++c) sums[kColorSum] += fabsf(im.drawn(pixel, c) - im.observed(pixel, c));
  }
  if (!im.is_measured(pixel)) return;
  sums[kOpacitySum] += 1 - im.alpha[pixel], sums[kNumMeasured] += 1;
  if (im.alpha[pixel] > 0.5f) {
    sums[kDepthSum] += fabsf(im.depth(pixel) - im.observed_depth[pixel]), sums[kNumCovered] += 1;
  }
}

// SSIM of a window in a channel.
PM_DEVICE inline float window_ssim(const LossImages& im, int64_t number, int channel, WindowGradient& gradient) {
  const int top = (int)(number / im.windows_x) * kWindowStride, left = (int)(number % im.windows_x) * kWindowStride;
  float a = 0, b = 0, aa = 0, bb = 0, ab = 0;
  for (int y = top; y < top + im.window; ++y) {
    for (int x = left; x < left + im.window; ++x) {
      const int64_t pixel = (int64_t)y * im.width + x;
      if (!im.is_counted(pixel)) continue;
      const float drawn = im.drawn(pixel, channel), observed = im.observed(pixel, channel);
      a += drawn, b += observed, aa += drawn * drawn, bb += observed * observed, ab += drawn * observed;
    }
  }
  const float share = 1.0f / (float)(im.window * im.window);
  a *= share, b *= share, aa *= share, bb *= share, ab *= share;
  const float means = a * a + b * b + kSsimC1, variances = aa - a * a + (bb - b * b) + kSsimC2;
  const float luminance = (2 * a * b + kSsimC1) / means, contrast = (2 * (ab - a * b) + kSsimC2) / variances;
  const float of_aa = -luminance * contrast / variances, of_ab = 2 * luminance / variances;
  const float of_a = 2 * (b - a * luminance) / means * contrast - 2 * a * of_aa - b * of_ab;
  gradient = {share * of_a, share * of_aa, share * of_ab};
  return luminance * contrast;
}

PM_DEVICE inline void losses_of_sums(const LossImages& im, const float* sums, float* terms) {
  const float num_colors = 3.0f * (float)im.num_pixels(), num_windows = 3.0f * (float)im.num_windows();
  terms[0] = (1 - im.ssim_share) * sums[kColorSum] / num_colors;
  if (im.ssim_share > 0) terms[0] += im.ssim_share * (1 - sums[kSsimSum] / num_windows);
  terms[1] = sums[kDepthSum] / fmaxf(sums[kNumCovered], 1);
  terms[2] = sums[kOpacitySum] / fmaxf(sums[kNumMeasured], 1);
}

// The gradients of a pixel. windows: [num_windows, 3], not read where ssim_share is 0.
PM_DEVICE inline void write_image_gradients(const LossImages& im, const float* sums, const WindowGradient* windows,
                                            int64_t pixel, float* v_image, float* v_alpha) {
  const int y = (int)(pixel / im.width), x = (int)(pixel % im.width), F = im.num_features;
  const float per_pixel = im.count / (float)im.num_pixels(), alpha = im.alpha[pixel];
  float* v = v_image + pixel * F;
  float of_colors[3] = {0, 0, 0}, errors[3] = {0, 0, 0};
  if (im.is_counted(pixel)) {
    const float of_absolute = im.color_weight * (1 - im.ssim_share) / (3.0f * (float)im.num_pixels());
    for (int c = 0; c < 3; ++c) {
      const float difference = im.drawn(pixel, c) - im.observed(pixel, c);
      of_colors[c] = of_absolute * sign_of(difference), errors[c] = -im.error_scale * difference;
    }
    if (im.ssim_share > 0) {
      const float of_ssim = -im.color_weight * im.ssim_share / (3.0f * (float)im.num_windows());
      const int last_y = y / kWindowStride < im.windows_y ? y / kWindowStride : im.windows_y - 1;
      const int last_x = x / kWindowStride < im.windows_x ? x / kWindowStride : im.windows_x - 1;
      for (int wy = last_y; wy >= 0 && wy * kWindowStride + im.window > y; --wy) {
        for (int wx = last_x; wx >= 0 && wx * kWindowStride + im.window > x; --wx) {
          const WindowGradient* of = windows + ((int64_t)wy * im.windows_x + wx) * 3;
          for (int c = 0; c < 3; ++c) {
            of_colors[c] += of_ssim * (of[c].of_sum + 2 * im.drawn(pixel, c) * of[c].of_squares +
                                       im.observed(pixel, c) * of[c].of_products);
          }
        }
      }
    }
  }
  float of_depths = 0, of_alpha = -per_pixel;
  if (im.is_measured(pixel)) {
    of_alpha -= im.opacity_weight / fmaxf(sums[kNumMeasured], 1);
    if (alpha > 0.5f) {
      const float depth = im.depth(pixel);
      of_depths = im.depth_weight / fmaxf(sums[kNumCovered], 1) * sign_of(depth - im.observed_depth[pixel]) / alpha;
      of_alpha -= of_depths * depth;
    }
  }
  for (int c = 0; c < 3; ++c) v[c] = of_colors[c];
  v[3] = per_pixel;
  for (int c = 0; c < F - 5; ++c) v[4 + c] = errors[c];
  v[F - 1] = of_depths;
  v_alpha[pixel] = of_alpha;
}

// CUDA kernels (image_losses_kernels.cu). `partials` is float [image_losses_blocks(images), kSums].
int64_t image_losses_blocks(const LossImages& images);
void launch_image_losses(const LossImages& images, int64_t blocks, WindowGradient* windows, float* partials, float* sums,
                         float* terms, float* v_image, float* v_alpha, int device);

}  // namespace panoptic_mapper
