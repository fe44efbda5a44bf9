// Schemas and CPU implementations of the operators; autograd and fakes are in panoptic_mapper/ops/rasterize.py.

#include <torch/library.h>
#include <torch/version.h>

#include "rasterize.h"

// What panoptic_mapper/ops/__init__.py looks for in the file before it loads it.
extern "C" __attribute__((used, visibility("default"))) const char panoptic_mapper_torch_version[] =
    "panoptic_mapper kernels for torch " TORCH_VERSION;

#define PM_LISTS                                                                                             \
  "Tensor tile_offsets, Tensor isect_gaussians, Tensor slot_offsets, Tensor slot_isects"
#define PM_PAIRS "Tensor pair_offsets, Tensor pair_pixels, Tensor pair_weights"
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
  m.def("splat(Tensor means2d, Tensor conics, Tensor extents, Tensor opacities, Tensor features, " PM_LISTS
        ", " PM_PAIRS ", Tensor transmittance, Tensor last) -> (Tensor image, Tensor alpha)");
  m.def("splat_geometry_backward(Tensor v_image, Tensor v_alpha, Tensor means2d, Tensor conics, Tensor extents,"
        " Tensor opacities, Tensor features, " PM_LISTS ", Tensor transmittance, Tensor last)"
        " -> (Tensor v_means2d, Tensor v_conics, Tensor v_opacities)");
}

TORCH_LIBRARY_IMPL(panoptic_mapper, CPU, m) {
  m.impl("project_gaussians", panoptic_mapper::project_gaussians);
  m.impl("project_gaussians_backward", panoptic_mapper::project_gaussians_backward);
  m.impl("list_gaussians", panoptic_mapper::list_gaussians);
  m.impl("blend", panoptic_mapper::blend);
  m.impl("blend_backward", panoptic_mapper::blend_backward);
  m.impl("splat", panoptic_mapper::splat);
  m.impl("splat_geometry_backward", panoptic_mapper::splat_geometry_backward);
}
