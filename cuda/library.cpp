// Schemas and implementations of the operators; autograd and fakes are in panoptic_mapper/ops/.

#include <torch/library.h>
#include <torch/version.h>

#include "bounded_lists.h"
#include "device_errors.h"
#include "image_losses.h"
#include "label_losses.h"
#include "label_warp.h"
#include "local_cross_attention.h"
#include "map_rows.h"
#include "rasterize.h"
#include "splat_step.h"
#include "tally.h"
#include "visibility.h"
#include "whitening.h"

// What panoptic_mapper/ops/__init__.py looks for in the file before it loads it.
extern "C" __attribute__((used, visibility("default"))) const char panoptic_mapper_torch_version[] =
    "panoptic_mapper kernels for torch " TORCH_VERSION;
#ifdef PANOPTIC_MAPPER_WITH_CUDA
extern "C" __attribute__((used, visibility("default"))) const char panoptic_mapper_has_cuda[] =
    "panoptic_mapper kernels for CUDA";
#endif

#define PM_LISTS                                                                                             \
  "Tensor tile_offsets, Tensor isect_gaussians, Tensor slot_offsets, Tensor slot_isects"
#define PM_PAIRS "Tensor pair_offsets, Tensor pair_pixels, Tensor pair_weights"
#define PM_ATTENTION                                                                                         \
  "Tensor features, Tensor means, Tensor visible, Tensor keys, Tensor centers, Tensor whitenings,"            \
  " Tensor class_probs, Tensor is_thing, int num_stuff"
#define PM_WARP                                                                                              \
  "Tensor probabilities, Tensor depth, Tensor intrinsics, Tensor targets, Tensor target_depth,"               \
  " Tensor target_intrinsics, Tensor T_target_source"
#define PM_LOSSES                                                                                            \
  "Tensor masks, Tensor logs, Tensor panoptic_targets, Tensor semantic_targets, Tensor weights, int num_stuff"
#define PM_TALLY "Tensor a, Tensor b, Tensor weights, int num_a, int num_b"
#define PM_CAMERA "Tensor T_camera_map, float fx, float fy, float cx, float cy, int width, int height"

TORCH_LIBRARY_FRAGMENT(panoptic_mapper, m) {
  m.def("project_gaussians(Tensor means, Tensor quats, Tensor scales, Tensor opacities, " PM_CAMERA
        ") -> (Tensor means2d, Tensor depths, Tensor conics, Tensor extents, Tensor visible)");
  m.def("project_gaussians_backward(Tensor means, Tensor quats, Tensor scales, " PM_CAMERA
        ", Tensor visible, Tensor v_means2d, Tensor v_depths, Tensor v_conics)"
        " -> (Tensor v_means, Tensor v_quats, Tensor v_scales)");
  m.def("list_gaussians(Tensor means2d, Tensor depths, Tensor conics, Tensor extents, Tensor opacities,"
        " int width, int height) -> (" PM_LISTS ", " PM_PAIRS ", Tensor transmittance, Tensor last)");
  m.def("blend(Tensor features, " PM_LISTS ", " PM_PAIRS ", int width, int height) -> Tensor");
  m.def("blend_backward(Tensor v_image, " PM_LISTS ", " PM_PAIRS ") -> Tensor");
  m.def("tally_pairs(" PM_LISTS ", " PM_PAIRS ", " PM_TALLY ") -> Tensor");
  m.def("tally_tiles(Tensor means2d, Tensor conics, Tensor opacities, Tensor tile_offsets, Tensor isect_gaussians,"
        " " PM_TALLY ") -> Tensor");
  m.def("splat(Tensor means2d, Tensor conics, Tensor extents, Tensor opacities, Tensor features, " PM_LISTS
        ", " PM_PAIRS ", Tensor transmittance, Tensor last) -> (Tensor image, Tensor alpha)");
  m.def("splat_geometry_backward(Tensor v_image, Tensor v_alpha, Tensor means2d, Tensor conics, Tensor extents,"
        " Tensor opacities, Tensor features, " PM_LISTS ", Tensor transmittance, Tensor last)"
        " -> (Tensor v_means2d, Tensor v_conics, Tensor v_opacities)");
  m.def("local_cross_attention(" PM_ATTENTION ") -> Tensor");
  m.def("local_cross_attention_backward(Tensor v_distribution, " PM_ATTENTION
        ") -> (Tensor v_features, Tensor v_keys, Tensor v_centers, Tensor v_whitenings, Tensor v_class_probs)");
  m.def("label_warp(" PM_WARP ") -> (Tensor loss, Tensor mass)");
  m.def("label_warp_backward(Tensor v_loss, Tensor mass, " PM_WARP ") -> Tensor");
  m.def("gather_columns(Tensor values, Tensor ids, int[] widths) -> Tensor[]");
  m.def("adam_rows_(Tensor(a!) values, Tensor(b!) moments, Tensor(c!) steps, Tensor ids, Tensor? which,"
        " Tensor?[] gradients, int[] widths, Tensor rates, float beta_1, float beta_2, float epsilon) -> ()");
  m.def("list_tiles(Tensor means2d, Tensor radii, Tensor depths, int width, int height, int capacity)"
        " -> (Tensor offsets, Tensor isect_gaussians, Tensor count)");
  m.def("splat_inputs(Tensor values, Tensor ids, bool with_copies)"
        " -> (Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor features)");
  m.def("splat_step_(Tensor(a!) values, Tensor(b!) moments, Tensor(c!) steps, Tensor ids, Tensor? is_valid, Tensor v_means, Tensor v_quats,"
        " Tensor v_scales, Tensor v_opacities, Tensor v_features, Tensor rates, float beta_1, float beta_2,"
        " float epsilon, float max_scale, float v_excess, float least_weight, float relaxation, float min_weight) -> ()");
  m.def("frustum_mask(Tensor means, " PM_CAMERA ", float margin, float near_m, Tensor? limits) -> Tensor");
  m.def("holding_mask(Tensor means, Tensor rows, Tensor centers, Tensor quats, Tensor log_scales, " PM_CAMERA
        ", float chi2) -> Tensor");
  m.def("whitening_matrices(Tensor quats, Tensor log_scales) -> Tensor");
  m.def("whitening_matrices_backward(Tensor v_whitenings, Tensor quats, Tensor log_scales)"
        " -> (Tensor v_quats, Tensor v_log_scales)");
  m.def("label_targets(Tensor mask_index, Tensor semantic, Tensor? disputed, Tensor confidence, Tensor mask_rows,"
        " Tensor mask_classes, Tensor mask_factors, Tensor positions, Tensor stuff_of_classes,"
        " Tensor semantic_of_classes, int first_query) -> (Tensor panoptic, Tensor semantic, Tensor weights)");
  m.def("label_losses(" PM_LOSSES ") -> (Tensor losses, Tensor sums)");
  m.def("label_losses_backward(Tensor v_losses, Tensor sums, " PM_LOSSES ") -> (Tensor v_masks, Tensor v_logs)");
  m.def("image_losses(Tensor image, Tensor alpha, Tensor observed_color, Tensor observed_depth, float color_weight,"
        " float depth_weight, float opacity_weight, float ssim_share, float min_depth, float max_depth, float count,"
        " float error_scale) -> (Tensor terms, Tensor v_image, Tensor v_alpha)");
  m.def("raise_device_errors() -> ()", panoptic_mapper::raise_device_errors);
}

TORCH_LIBRARY_IMPL(panoptic_mapper, CPU, m) {
  m.impl("project_gaussians", panoptic_mapper::project_gaussians);
  m.impl("project_gaussians_backward", panoptic_mapper::project_gaussians_backward);
  m.impl("list_gaussians", panoptic_mapper::list_gaussians);
  m.impl("blend", panoptic_mapper::blend);
  m.impl("blend_backward", panoptic_mapper::blend_backward);
  m.impl("tally_pairs", panoptic_mapper::tally_pairs);
  m.impl("splat", panoptic_mapper::splat);
  m.impl("splat_geometry_backward", panoptic_mapper::splat_geometry_backward);
  m.impl("local_cross_attention", panoptic_mapper::local_cross_attention);
  m.impl("local_cross_attention_backward", panoptic_mapper::local_cross_attention_backward);
  m.impl("label_warp", panoptic_mapper::label_warp);
  m.impl("label_warp_backward", panoptic_mapper::label_warp_backward);
  m.impl("label_targets", panoptic_mapper::label_targets);
  m.impl("label_losses", panoptic_mapper::label_losses);
  m.impl("label_losses_backward", panoptic_mapper::label_losses_backward);
  m.impl("image_losses", panoptic_mapper::image_losses);
  m.impl("gather_columns", panoptic_mapper::gather_columns);
  m.impl("adam_rows_", panoptic_mapper::adam_rows_);
  m.impl("tally_tiles", panoptic_mapper::tally_tiles);
  m.impl("list_tiles", panoptic_mapper::list_tiles);
  m.impl("splat_inputs", panoptic_mapper::splat_inputs);
  m.impl("splat_step_", panoptic_mapper::splat_step_);
  m.impl("frustum_mask", panoptic_mapper::frustum_mask);
  m.impl("holding_mask", panoptic_mapper::holding_mask);
  m.impl("whitening_matrices", panoptic_mapper::whitening_matrices);
  m.impl("whitening_matrices_backward", panoptic_mapper::whitening_matrices_backward);
}

#ifdef PANOPTIC_MAPPER_WITH_CUDA
TORCH_LIBRARY_IMPL(panoptic_mapper, CUDA, m) {
  m.impl("local_cross_attention", panoptic_mapper::local_cross_attention);
  m.impl("local_cross_attention_backward", panoptic_mapper::local_cross_attention_backward);
  m.impl("label_warp", panoptic_mapper::label_warp);
  m.impl("label_warp_backward", panoptic_mapper::label_warp_backward);
  m.impl("label_targets", panoptic_mapper::label_targets);
  m.impl("label_losses", panoptic_mapper::label_losses);
  m.impl("label_losses_backward", panoptic_mapper::label_losses_backward);
  m.impl("image_losses", panoptic_mapper::image_losses);
  m.impl("gather_columns", panoptic_mapper::gather_columns);
  m.impl("adam_rows_", panoptic_mapper::adam_rows_);
  m.impl("tally_tiles", panoptic_mapper::tally_tiles);
  m.impl("list_tiles", panoptic_mapper::list_tiles);
  m.impl("splat_inputs", panoptic_mapper::splat_inputs);
  m.impl("splat_step_", panoptic_mapper::splat_step_);
  m.impl("frustum_mask", panoptic_mapper::frustum_mask);
  m.impl("holding_mask", panoptic_mapper::holding_mask);
  m.impl("whitening_matrices", panoptic_mapper::whitening_matrices);
  m.impl("whitening_matrices_backward", panoptic_mapper::whitening_matrices_backward);
}
#endif
