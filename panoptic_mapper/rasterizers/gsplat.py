"""The CUDA rasteriser: a thin adapter on gsplat 1.5's low-level functions (Ye et al. 2025)."""

from __future__ import annotations

import importlib
import math
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.rasterizers.base import BLUR_PX2, MIN_ALPHA, NEAR_M, Rendering, SplatGradients
from panoptic_mapper.rasterizers.checks import check_gaussians, check_values, expected_depth
from panoptic_mapper.transfers import AsyncHostCopy, to_device

TILE = 16  # pixels
# More channels are splatted in parts, as gsplat's own `rasterization` does: the shared memory of its backward kernel
# follows them. Within a part, `rasterize_to_pixels` pads to a number that it has a kernel for.
MAX_CHANNELS = 32
# Lists of bounded size have room for so many times the longest of the last ones, rounded up.
ROOM, ROOM_STEP, LENGTHS_KEPT = 1.5, 1 << 16, 64
NUM_CHANNELS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32)  # for which its kernels are compiled, up to there


@lru_cache(maxsize=16)
def _intrinsics(camera: PinholeCamera, device: torch.device) -> Tensor:
    """The camera matrix [3, 3] float32 with gsplat's pixel centres, which are at + 0.5."""
    matrix = [[camera.fx, 0.0, camera.cx + 0.5], [0.0, camera.fy, camera.cy + 0.5], [0.0, 0.0, 1.0]]
    return to_device(torch.tensor(matrix, dtype=torch.float32), device)


def _num_tiles(camera: PinholeCamera) -> tuple[int, int]:
    """Along y and x."""
    return math.ceil(camera.height / TILE), math.ceil(camera.width / TILE)


@lru_cache(maxsize=16)
def _tile_masks(camera: PinholeCamera, device: torch.device) -> Tensor:
    """Which tiles of lists of bounded size are of the image: [1, tiles_y + 1, tiles_x] bool; the last row is not."""
    tiles_y, tiles_x = _num_tiles(camera)
    masks = torch.ones(1, tiles_y + 1, tiles_x, dtype=torch.bool, device=device)
    masks[:, -1].fill_(False)
    return masks


class ListRoom:
    """How long lists of Gaussians by tiles may become, from how long they were, which the host learns later."""

    def __init__(self) -> None:
        self._noted: deque[AsyncHostCopy] = deque()
        self._lengths: deque[int] = deque(maxlen=LENGTHS_KEPT)

    def note(self, length: Tensor) -> None:
        """Takes note of how long [1] a list was, or would have been."""
        self._noted.append(AsyncHostCopy(length))

    def capacity(self) -> int:
        """The room for the next list; 0 where nothing is known."""
        while self._noted and self._noted[0].is_done():
            self._lengths.append(int(self._noted.popleft().wait()))
        if not self._lengths:
            return 0
        return math.ceil(ROOM * max(self._lengths) / ROOM_STEP + 1) * ROOM_STEP


@dataclass
class GsplatView:
    """A projected view; its tile lists are shared by all its images."""

    gsplat: ModuleType
    visible: Tensor  # [V] int64, ascending
    means2d: Tensor  # [V, 2] px, gsplat's: the top-left pixel's centre is at (0.5, 0.5)
    depths: Tensor  # [V] m
    conics: Tensor  # [V, 3] 1/px^2
    opacities: Tensor  # [V]
    tile_offsets: Tensor  # [1, tiles_y, tiles_x] int32
    isect_gaussians: Tensor  # [M] int32
    camera: PinholeCamera

    def render(self, colors: Tensor) -> Rendering:
        check_values("colors", colors, self.depths, self.visible.shape[0])
        features = torch.cat((colors, self.depths[:, None]), dim=1)
        image, alpha = self._splat(features, self.means2d, self.conics, self.opacities)
        color, depth = image.split((colors.shape[1], 1), dim=2)
        return Rendering(color, expected_depth(depth[..., 0], alpha, MIN_ALPHA), alpha)

    def blend(self, values: Tensor) -> Tensor:
        check_values("values", values, self.depths, self.visible.shape[0])
        geometry = (self.means2d.detach(), self.conics.detach(), self.opacities.detach())
        return self._splat(values, *geometry)[0]

    @torch.no_grad()
    def tally(self, a: Tensor, b: Tensor, weights: Tensor, num_a: int, num_b: int) -> Tensor:
        ops.load()
        splats = (self.means2d, self.conics, self.opacities, self.tile_offsets, self.isect_gaussians)
        return torch.ops.panoptic_mapper.tally_tiles(*splats, a, b, weights, num_a, num_b)

    def _splat(self, features: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor) -> tuple[Tensor, Tensor]:
        """Image [H, W, F] and alpha [H, W]."""
        height, width = self.camera.height, self.camera.width
        if self.isect_gaussians.shape[0] == 0 or features.shape[1] == 0:
            # gsplat has no path for nothing to draw. Sums over no rows are 0 and keep the images in the graph, so
            # that backward runs.
            image, alpha = features[:0].sum(dim=0), opacities[:0].sum()
            return image.expand(height, width, -1), alpha.expand(height, width)
        parts = [
            self.gsplat.rasterize_to_pixels(
                means2d,
                conics,
                part,
                opacities,
                width,
                height,
                TILE,
                self.tile_offsets,
                self.isect_gaussians,
                packed=True,
            )
            for part in features.split(MAX_CHANNELS, dim=1)
        ]
        return torch.cat([image[0] for image, _ in parts], dim=2), parts[0][1][0, ..., 0]


@dataclass
class TracedGsplatView:
    """A view with what its gradients are computed of, by the kernels behind gsplat's own functions."""

    kernels: ModuleType
    drawn: GsplatView  # of the visible Gaussians, or of all, in which case it has no `visible`
    inputs: tuple[Tensor, ...]  # means, quats and scales of all Gaussians
    T_camera_map: Tensor  # [4, 4]
    batch_ids: Tensor | None  # [V]; None = of all
    camera_ids: Tensor | None  # [V]; None = of all
    radii: Tensor  # [V or N, 2] px, 0 = not visible
    is_complete: Tensor | None = None
    masks: Tensor | None = None  # [1, tiles_y, tiles_x] bool, tiles of the image; None = all are

    @property
    def view(self) -> GsplatView | None:
        return None if self.batch_ids is None else self.drawn

    @torch.no_grad()
    def splat(self, features: Tensor) -> tuple[Tensor, Tensor]:
        v, self._num_features = self.drawn, features.shape[1]
        features[:, -1] = v.depths
        size = (v.camera.width, v.camera.height)
        if v.isect_gaussians.shape[0] == 0:  # gsplat has no path for nothing to draw
            return features.new_zeros(*size[::-1], self._num_features), features.new_zeros(size[::-1])
        self._splatted = (v.means2d, v.conics, _padded(features), v.opacities, None, self.masks, *size, TILE)
        lists = (v.tile_offsets, v.isect_gaussians)
        image, self._alpha, self._last = self.kernels.rasterize_to_pixels_3dgs_fwd(*self._splatted, *lists)
        return image[0, ..., : self._num_features], self._alpha[0, ..., 0]

    @torch.no_grad()
    def backward(self, v_image: Tensor, v_alpha: Tensor) -> SplatGradients:
        v, n, rows = self.drawn, self._num_features, len(self.drawn.depths)
        if v.isect_gaussians.shape[0] == 0:
            return SplatGradients(*(v_image.new_zeros(rows, *width) for width in ((3,), (4,), (3,), (), (n,))))
        _, v_means2d, v_conics, v_features, v_opacities = self.kernels.rasterize_to_pixels_3dgs_bwd(
            *self._splatted,
            v.tile_offsets,
            v.isect_gaussians,
            self._alpha,
            self._last,
            _padded(v_image)[None].contiguous(),
            v_alpha[None, ..., None].contiguous(),
            False,
        )
        v_depths = v_features[:, n - 1].contiguous()
        means, quats, scales = self.inputs
        splats = (means, None, quats, scales, self.T_camera_map[None], _intrinsics(v.camera, means.device)[None])
        image = (v.camera.width, v.camera.height, BLUR_PX2, self.kernels.CameraModelType.PINHOLE)
        if self.batch_ids is None:
            v_means, _, v_quats, v_scales, _ = self.kernels.projection_ewa_3dgs_fused_bwd(
                *splats,
                *image,
                self.radii[None],
                v.conics[None],
                None,
                v_means2d[None],
                v_depths[None],
                v_conics[None],
                None,
                False,  # no gradient for the pose
            )
        else:
            v_means, _, v_quats, v_scales, _ = self.kernels.projection_ewa_3dgs_packed_bwd(
                *splats,
                *image,
                self.batch_ids,
                self.camera_ids,
                v.visible,
                v.conics,
                None,
                v_means2d,
                v_depths,
                v_conics,
                None,
                False,  # no gradient for the pose
                True,  # gradients of the visible Gaussians only
            )
        return SplatGradients(v_means, v_quats, v_scales, v_opacities, v_features[:, :n])


def _padded(features: Tensor) -> Tensor:
    """Features [..., F] with zeros up to a number of channels that gsplat has a kernel for."""
    num = next(n for n in NUM_CHANNELS if n >= features.shape[-1])
    return features if num == features.shape[-1] else torch.nn.functional.pad(features, (0, num - features.shape[-1]))


class GsplatRasterizer:
    """gsplat on a CUDA device. Its backward sums with atomics: gradients differ in their last bits from run to run.

    Raises:
        ModuleNotFoundError: gsplat is not installed.
    """

    name = "gsplat"

    def __init__(self) -> None:
        self._gsplat = importlib.import_module("gsplat")
        self._room = ListRoom()

    def project(
        self,
        means: Tensor,  # [N, 3] float32 on a CUDA device
        quats: Tensor,  # [N, 4]
        scales: Tensor,  # [N, 3]
        opacities: Tensor,  # [N]
        T_camera_map: Tensor,  # [4, 4]
        camera: PinholeCamera,
    ) -> GsplatView:
        check_gaussians(means, quats, scales, opacities, T_camera_map, device_type="cuda", dtype=torch.float32)
        return self._project(means, quats, scales, opacities, T_camera_map, camera)[0]

    @torch.no_grad()
    def trace(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        T_camera_map: Tensor,
        camera: PinholeCamera,
        with_view: bool,
    ) -> TracedGsplatView:
        check_gaussians(means, quats, scales, opacities, T_camera_map, device_type="cuda", dtype=torch.float32)
        if not with_view and means.shape[0] > 0:
            return self._trace_all(means, quats, scales, opacities, T_camera_map, camera)
        view, *rest = self._project(means, quats, scales, opacities, T_camera_map, camera)
        return TracedGsplatView(self._kernels, view, (means, quats, scales), T_camera_map, *rest)

    @property
    def _kernels(self) -> ModuleType:
        return importlib.import_module("gsplat.cuda._backend")._C

    def _project(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        T_camera_map: Tensor,
        camera: PinholeCamera,
    ) -> tuple[GsplatView, Tensor, Tensor, Tensor]:
        """The view of the visible Gaussians, and of each its batch and its camera, which are 0, and its radii."""
        if means.shape[0] == 0:  # gsplat divides by the number of Gaussians
            rows = torch.zeros(0, dtype=torch.int64, device=means.device)
            lists = (rows.new_zeros(1, *_num_tiles(camera), dtype=torch.int32), rows.int())
            view = GsplatView(self._gsplat, rows, means[:, :2], means[:, 2], means, opacities, *lists, camera)
            return view, rows, rows, means[:, :2]
        batch_ids, camera_ids, visible, radii, means2d, depths, conics, _ = self._gsplat.fully_fused_projection(
            means,
            None,
            quats,
            scales,
            T_camera_map.detach()[None],
            _intrinsics(camera, means.device)[None],
            camera.width,
            camera.height,
            eps2d=BLUR_PX2,
            near_plane=NEAR_M,
            packed=True,
            opacities=opacities.detach(),  # bounds the footprint; no gradient
        )
        lists = self._lists(means2d, radii, depths, camera, image_ids=torch.zeros_like(visible), gaussian_ids=visible)
        view = GsplatView(self._gsplat, visible, means2d, depths, conics, opacities[visible], *lists, camera)
        return view, batch_ids, camera_ids, radii

    def _trace_all(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        T_camera_map: Tensor,
        camera: PinholeCamera,
    ) -> TracedGsplatView:
        """The view of all Gaussians, for which the host does not wait, but for the first one."""
        radii, means2d, depths, conics, _ = self._gsplat.fully_fused_projection(
            means,
            None,
            quats,
            scales,
            T_camera_map[None],
            _intrinsics(camera, means.device)[None],
            camera.width,
            camera.height,
            eps2d=BLUR_PX2,
            near_plane=NEAR_M,
            opacities=opacities,
        )
        is_complete, masks = None, None
        capacity = self._room.capacity()
        if capacity == 0:
            offsets, gaussians = self._lists(means2d, radii, depths, camera)
            self._room.note(torch.tensor([len(gaussians)]))
        else:
            ops.load()
            splats = (means2d[0], radii[0], depths[0], camera.width, camera.height)
            offsets, gaussians, length = torch.ops.panoptic_mapper.list_tiles(*splats, capacity)
            self._room.note(length)
            is_complete, masks = length <= capacity, _tile_masks(camera, means.device)
        no_rows = gaussians[:0].long()
        view = GsplatView(
            self._gsplat, no_rows, means2d[0], depths[0], conics[0], opacities, offsets, gaussians, camera
        )
        inputs = (means, quats, scales)
        return TracedGsplatView(self._kernels, view, inputs, T_camera_map, None, None, radii[0], is_complete, masks)

    @torch.no_grad()
    def _lists(
        self, means2d: Tensor, radii: Tensor, depths: Tensor, camera: PinholeCamera, **packed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Which Gaussians each tile shows, by depth: offsets [1, tiles_y, tiles_x] of its first in rows [M]."""
        tiles_y, tiles_x = _num_tiles(camera)
        sizes = {"packed": True, "n_images": 1, **packed} if packed else {}
        _, isect_ids, isect_gaussians = self._gsplat.isect_tiles(
            means2d, radii, depths, TILE, tiles_x, tiles_y, **sizes
        )
        return self._gsplat.isect_offset_encode(isect_ids, 1, tiles_x, tiles_y), isect_gaussians
