"""The protocol that every rasteriser backend fulfils: project once, then render and blend through the same weights.

The centre of the top-left pixel is at (0, 0), as in OpenCV and ROS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from panoptic_mapper.frame import PinholeCamera

# Constants of the splatting model, shared by all backends. But for the blur, they are those of gsplat 1.5.
NEAR_M = 0.01  # Gaussians nearer than this to the image plane are culled
BLUR_PX2 = 1 / 12  # px^2, the variance over a pixel, added to projected covariances: a pixel shows what covers it
MIN_ALPHA = 1.0 / 255.0  # contributions below this are skipped
MAX_ALPHA = 0.999
MIN_TRANSMITTANCE = 1e-4  # a pixel is finished when less light than this would pass


@dataclass(frozen=True)
class Rendering:
    """Images of the map. Gradients flow to every input of `project` and to the colours."""

    color: Tensor  # [H, W, D] sum of weights times colours; background 0
    depth: Tensor  # [H, W] m, expected depth: sum of weights times centre depth / alpha; 0 where alpha is 0
    alpha: Tensor  # [H, W] in 0..1, sum of the weights


class ProjectedView(Protocol):
    """A map seen by one camera: what is visible, projected, and sorted along the rays."""

    visible: Tensor  # [V] int64, ascending: rows of the Gaussians whose footprint meets the image

    def render(self, colors: Tensor) -> Rendering:
        """Splats `colors` [V, D] (rows as in `visible`) with depth and alpha, differentiable in geometry too."""
        ...

    def blend(self, values: Tensor) -> Tensor:
        """Splats `values` [V, C] to [H, W, C] with detached weights: gradients reach the values, never the geometry."""
        ...

    def tally(self, a: Tensor, b: Tensor, weights: Tensor, num_a: int, num_b: int) -> Tensor:
        """Sums [V + 1, num_a + 2 num_b + 1] of what each Gaussian makes up of pixels, by the columns that these name.

        Args:
            a, b: [H, W] int64 columns; out of their ranges = none.
            weights: [H, W] of the pixels.
            num_a, num_b: number of columns. The layout is that of cuda/tally.h; no gradients.
        """
        ...


@dataclass(frozen=True)
class SplatGradients:
    """Gradients of the rows of a `TracedView`."""

    means: Tensor  # [V, 3]
    quats: Tensor  # [V, 4]
    scales: Tensor  # [V, 3]
    opacities: Tensor  # [V]
    features: Tensor  # [V, D]


class TracedView(Protocol):
    """A projected view of which one image is differentiated by hand, without autograd and what that costs the host.

    Its rows [V] are the visible ones, or all that were projected: then those out of view have gradients of 0.
    """

    view: ProjectedView | None  # the same for images of other values; None = the view has all rows
    is_complete: Tensor | None  # [1] bool, False where not all that is to be seen could be drawn; None = all is

    def splat(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The image [H, W, D] of `features` [V, D], and its alpha [H, W].

        The last feature is overwritten with the depth, m, whose image is a sum of weights times depths
        (`checks.expected_depth`).
        """
        ...

    def backward(self, v_image: Tensor, v_alpha: Tensor) -> SplatGradients:
        """The gradients that those of the image last made by `splat`, [H, W, D] and [H, W], give to its inputs."""
        ...


class Rasterizer(Protocol):
    """Perspective EWA splatting of 3D Gaussians (Zwicker et al. 2001; Kerbl et al. 2023)."""

    name: str

    def project(
        self,
        means: Tensor,  # [N, 3] map frame, m
        quats: Tensor,  # [N, 4] wxyz, need not be normalised
        scales: Tensor,  # [N, 3] standard deviations, m
        opacities: Tensor,  # [N] in 0..1
        T_camera_map: Tensor,  # [4, 4] map to camera frame, same dtype and device; no gradient
        camera: PinholeCamera,
    ) -> ProjectedView:
        """Projects, culls and sorts. An empty map gives an empty view that renders black."""
        ...


@runtime_checkable
class TracingRasterizer(Rasterizer, Protocol):
    """A rasteriser that can be differentiated by hand, too."""

    def trace(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        T_camera_map: Tensor,
        camera: PinholeCamera,
        with_view: bool,
    ) -> TracedView:
        """Projects as `project` does.

        Args:
            with_view: whether `TracedView.view` will be asked. Else a GPU need not make the host wait to learn which
                rows are visible.
        """
        ...
