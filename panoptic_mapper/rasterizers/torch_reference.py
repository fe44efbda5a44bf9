"""The rasteriser in plain torch, a block of pixels at a time: any floating dtype, gradients by autograd.

It is the oracle of the compiled backends, so it follows the equations and nothing else. Zwicker et al. 2001, "EWA
volume splatting" (projection); Kerbl et al. 2023, "3D Gaussian splatting" (blending); Radl et al. 2024, "StopThePop",
sec. B.2 (extent that depends on the opacity).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.rasterizers.base import BLUR_PX2, MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, NEAR_M, Rendering
from panoptic_mapper.rasterizers.checks import check_gaussians, check_values, expected_depth

MAX_EXTENT = 3.33  # standard deviations: where a splat of opacity 1 falls below MIN_ALPHA
FAR_M = 1e10
BLOCK = 16  # pixels: weights are dense over a square of this side and the Gaussians whose footprint meets it


def rotation_from_quats(quats: Tensor) -> Tensor:
    """Rotations [N, 3, 3] of quaternions [N, 4] wxyz of any length."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=1).unbind(1)
    rows = [
        torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)), dim=1),
        torch.stack((2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)), dim=1),
        torch.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), dim=1),
    ]
    return torch.stack(rows, dim=1)


def projected_covariances(
    points: Tensor,  # [N, 3] camera frame
    covariances: Tensor,  # [N, 3, 3] camera frame
    camera: PinholeCamera,
) -> Tensor:  # [N, 2, 2] px^2
    """Covariances of the splats: J Sigma J^T plus the blur, J the Jacobian of the projection at the mean.

    x/z and y/z are clamped in J to the field of view and 0.3 of its half beyond the image's border, as the linear
    model is far off outside.
    """
    x, y, z = points.unbind(1)
    margin_x, margin_y = 0.15 * camera.width / camera.fx, 0.15 * camera.height / camera.fy
    left, right = -(camera.cx + 0.5) / camera.fx, (camera.width - 0.5 - camera.cx) / camera.fx
    top, bottom = -(camera.cy + 0.5) / camera.fy, (camera.height - 0.5 - camera.cy) / camera.fy
    tx = z * (x / z).clamp(left - margin_x, right + margin_x)
    ty = z * (y / z).clamp(top - margin_y, bottom + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        (
            torch.stack((camera.fx / z, zero, -camera.fx * tx / z**2), dim=1),
            torch.stack((zero, camera.fy / z, -camera.fy * ty / z**2), dim=1),
        ),
        dim=1,
    )
    blur = BLUR_PX2 * torch.eye(2, dtype=z.dtype, device=z.device)
    return jacobian @ covariances @ jacobian.mT + blur


def footprint_radii(covariances: Tensor, opacities: Tensor) -> Tensor:
    """Half sizes [N, 2] px of the rectangles outside of which alpha < MIN_ALPHA, rounded up."""
    extents = (2 * (opacities / MIN_ALPHA).clamp_min(1).log()).sqrt().clamp_max(MAX_EXTENT)
    return (extents[:, None] * covariances.diagonal(dim1=1, dim2=2).sqrt()).ceil()


def is_visible(means2d: Tensor, radii: Tensor, opacities: Tensor, camera: PinholeCamera) -> Tensor:
    """Flags [N] of the splats whose footprint meets the image."""
    size = torch.tensor([camera.width, camera.height], dtype=means2d.dtype, device=means2d.device)
    corner = means2d + 0.5  # from the image's corner
    meets = ((corner + radii > 0) & (corner - radii < size)).all(dim=1)
    return (opacities >= MIN_ALPHA) & meets & (radii > 0).any(dim=1)


@dataclass
class TorchView:
    """A projected view, in order of the visible rows."""

    visible: Tensor  # [V] int64, ascending
    means2d: Tensor  # [V, 2] px
    depths: Tensor  # [V] m
    conics: Tensor  # [V, 2, 2] 1/px^2
    opacities: Tensor  # [V]
    radii: Tensor  # [V, 2] px
    camera: PinholeCamera

    def render(self, colors: Tensor) -> Rendering:
        check_values("colors", colors, self.depths, self.visible.shape[0])
        features = torch.cat((colors, self.depths[:, None], torch.ones_like(self.depths)[:, None]), dim=1)
        image = self._splat(features, detach=False)
        color, depth, alpha = image[..., :-2], image[..., -2], image[..., -1]
        return Rendering(color, expected_depth(depth, alpha, MIN_ALPHA), alpha)

    def blend(self, values: Tensor) -> Tensor:
        check_values("values", values, self.depths, self.visible.shape[0])
        return self._splat(values, detach=True)

    def tally(self, a: Tensor, b: Tensor, weights: Tensor, num_a: int, num_b: int) -> Tensor:
        """As the gradient of blended values to what the pixels ask for."""

        def asked(columns: Tensor, num: int, factors: Tensor | None = None) -> Tensor:  # [H, W, num]
            named = (columns[..., None] == torch.arange(num, device=columns.device)).to(self.depths)
            return named if factors is None else named * factors[..., None]

        told = asked(a, num_a).sum(-1, keepdim=True)
        wanted = torch.cat([asked(a, num_a, weights), asked(b, num_b, weights), asked(b, num_b), told], dim=-1)
        values = wanted.new_zeros(len(self.visible), wanted.shape[-1], requires_grad=True)
        with torch.enable_grad():
            (of_gaussians,) = torch.autograd.grad(self.blend(values), values, wanted)
        return torch.cat([of_gaussians, wanted.sum((0, 1))[None]])

    def _splat(self, features: Tensor, detach: bool) -> Tensor:
        """Sum of weights times features [V, F], as [H, W, F]."""
        order = self.depths.detach().argsort(stable=True)
        low, high = (self.means2d - self.radii)[order].detach(), (self.means2d + self.radii)[order].detach()
        rows = []
        for y in torch.arange(self.camera.height, device=features.device).split(BLOCK):
            meets_row = (low[:, 1] <= y[-1]) & (high[:, 1] >= y[0])
            blocks = []
            for x in torch.arange(self.camera.width, device=features.device).split(BLOCK):
                near = order[meets_row & (low[:, 0] <= x[-1]) & (high[:, 0] >= x[0])]
                pixels = torch.cartesian_prod(y, x).flip(1).to(features)  # [P, 2] as (x, y)
                weights = self._weights(pixels, near)
                block = (weights.detach() if detach else weights) @ features[near]
                blocks.append(block.reshape(len(y), len(x), -1))
            rows.append(torch.cat(blocks, dim=1))
        return torch.cat(rows)

    def _weights(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """Weights alpha_i * prod_{j<i} (1 - alpha_j) [P, R] of the Gaussians `rows` [R], ordered front to back."""
        offset = pixels[:, None] - self.means2d[rows]  # [P, R, 2]
        sigma = 0.5 * torch.einsum("pri,rij,prj->pr", offset, self.conics[rows], offset)
        alpha = (self.opacities[rows] * torch.exp(-sigma)).clamp_max(MAX_ALPHA)
        alpha = torch.where((sigma >= 0) & (alpha >= MIN_ALPHA), alpha, 0)
        after = (1 - alpha).cumprod(dim=1)  # transmittance behind each Gaussian
        before = torch.cat((torch.ones_like(after[:, :1]), after[:, :-1]), dim=1)
        # The pixel is finished by the Gaussian that would leave too little light: it is not drawn either. As
        # transmittance only falls, all those behind it fail the same test.
        return torch.where(after > MIN_TRANSMITTANCE, alpha * before, 0)


class TorchRasterizer:
    """Plain torch on any device: for tests and small scenes."""

    name = "torch"

    def project(
        self,
        means: Tensor,  # [N, 3]
        quats: Tensor,  # [N, 4]
        scales: Tensor,  # [N, 3]
        opacities: Tensor,  # [N]
        T_camera_map: Tensor,  # [4, 4]
        camera: PinholeCamera,
    ) -> TorchView:
        check_gaussians(means, quats, scales, opacities, T_camera_map)
        rotation, translation = T_camera_map[:3, :3].detach(), T_camera_map[:3, 3].detach()
        points = means @ rotation.T + translation
        # Only what lies in front of the camera is projected: nothing behind it may leave NaN in the gradients.
        near = ((points[:, 2] >= NEAR_M) & (points[:, 2] <= FAR_M)).nonzero()[:, 0]
        points = points[near]
        # Sigma = R S S^T R^T (Kerbl et al. 2023, eq. 6), turned into the camera frame.
        root = rotation @ rotation_from_quats(quats[near]) * scales[near, None, :]
        covariances = projected_covariances(points, root @ root.mT, camera)
        focal, center = points.new_tensor([camera.fx, camera.fy]), points.new_tensor([camera.cx, camera.cy])
        means2d = focal * points[:, :2] / points[:, 2:] + center
        with torch.no_grad():
            radii = footprint_radii(covariances, opacities[near])
            seen = is_visible(means2d, radii, opacities[near], camera).nonzero()[:, 0]
        visible = near[seen]
        conics = inverse_2x2(covariances[seen])
        return TorchView(visible, means2d[seen], points[seen, 2], conics, opacities[visible], radii[seen], camera)


def inverse_2x2(matrices: Tensor) -> Tensor:
    """Inverses of symmetric matrices [N, 2, 2]."""
    a, b, c = matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 1]
    adjugate = torch.stack((torch.stack((c, -b), dim=1), torch.stack((-b, a), dim=1)), dim=1)
    return adjugate / (a * c - b * b)[:, None, None]
