"""What goes into the mapper: a posed RGB-D frame, its camera, and the 2D panoptic labels of an image.

Conventions (docs/conventions.md): OpenCV camera axes (x right, y down, z forward); `T_map_camera` takes points of the
camera frame to the map frame; depth is metres along the optical axis, 0 where there is none; the centre of the
top-left pixel is at (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import cv2
import numpy as np

from panoptic_mapper.distinct_values import DistinctValues, Runs


@dataclass(frozen=True)
class PinholeCamera:
    """Intrinsics of an undistorted camera, in pixels."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self) -> None:
        values = (self.fx, self.fy, self.cx, self.cy)
        if not np.all(np.isfinite(values)) or self.fx <= 0 or self.fy <= 0:
            raise ValueError(f"intrinsics: expected finite fx, fy > 0 and finite cx, cy, got {values}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"intrinsics: expected a size of at least 1x1, got {self.width}x{self.height}")
        if not (-0.5 <= self.cx <= self.width and -0.5 <= self.cy <= self.height):
            raise ValueError(
                f"intrinsics: principal point ({self.cx:.1f}, {self.cy:.1f}) lies outside the"
                f" {self.width}x{self.height} image; do the intrinsics belong to another resolution?"
            )

    def resized(self, width: int, height: int) -> PinholeCamera:
        """The same camera sampled at another resolution (pixel centres at integers)."""
        sx, sy = width / self.width, height / self.height
        cx, cy = (self.cx + 0.5) * sx - 0.5, (self.cy + 0.5) * sy - 0.5
        return PinholeCamera(self.fx * sx, self.fy * sy, cx, cy, width, height)

    @property
    def numbers(self) -> tuple[float, float, float, float, int, int]:
        """fx, fy, cx, cy, width, height: what the compiled operators take of a camera."""
        return self.fx, self.fy, self.cx, self.cy, self.width, self.height

    @property
    def matrix(self) -> np.ndarray:  # [3, 3] float64
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])


@dataclass(frozen=True)
class Segmentation:
    """2D panoptic labels of one image, as a 2D model gives them: instance ids mean nothing across frames.

    Raises:
        ValueError: the shapes disagree, or an id is negative.
    """

    semantic: np.ndarray  # [H, W] int32 class index in the label space, 0 = unlabeled
    instance: np.ndarray  # [H, W] int32, 0 = stuff or unlabeled; 1.. are instances, each of one class
    confidence: np.ndarray | None = None  # [H, W] float32 in 0..1; None = 1 everywhere

    def __post_init__(self) -> None:
        for name in ("semantic", "instance", "confidence"):
            array = getattr(self, name)
            if array is not None and (array.ndim != 2 or array.shape != self.semantic.shape):
                raise ValueError(f"labels: {name} has shape {array.shape}, expected {self.semantic.shape}")
        if self.semantic.size and (self.semantic.min() < 0 or self.instance.min() < 0):
            raise ValueError("labels: negative class or instance id")

    @cached_property
    def segments(self) -> DistinctValues:
        """The different pairs of instance and class, as `instance << 32 | class`, and where they are."""
        return DistinctValues.of_runs(Runs.of_pairs(self.instance, self.semantic))

    @property
    def has_classes(self) -> bool:
        """Whether any pixel is labelled."""
        return bool((self.segments.values & 0xFFFFFFFF).any())

    def without_instances_of(self, is_other: np.ndarray) -> Segmentation:
        """The labels with instance 0 wherever the class is one of those that `is_other` [C] bool says."""
        ids, classes = np.divmod(self.segments.values, 1 << 32)
        is_dropped = (ids > 0) & is_other[classes]
        if not is_dropped.any():
            return self
        instance = self.segments.replaced_by(np.where(is_dropped, 0, ids).astype(np.int32))
        return replace(self, instance=instance)

    def resized(self, width: int, height: int) -> Segmentation:
        """Nearest-neighbour resampling; returns self where the size is already right."""
        if self.semantic.shape == (height, width):
            return self

        confidence = None if self.confidence is None else nearest(self.confidence, width, height)
        return Segmentation(nearest(self.semantic, width, height), nearest(self.instance, width, height), confidence)


@dataclass(frozen=True)
class Frame:
    """One synchronised observation.

    Raises:
        ValueError: naming the part (colour, depth, pose, labels), what was expected and what came.
    """

    stamp_ns: int  # time of the exposure, nanoseconds
    color: np.ndarray  # [H, W, 3] uint8 RGB
    depth: np.ndarray  # [H, W] float32 m; not finite or <= 0 is set to 0 = invalid
    T_map_camera: np.ndarray  # [4, 4] float64
    camera: PinholeCamera
    labels: Segmentation | None = None  # labels that came with the frame, for segmenters that pass them on

    def __post_init__(self) -> None:
        size = (self.camera.height, self.camera.width)
        if self.color.dtype != np.uint8 or self.color.shape != (*size, 3):
            raise ValueError(
                f"colour image: expected uint8 {(*size, 3)} as the intrinsics say,"
                f" got {self.color.dtype} {self.color.shape}"
            )
        if self.depth.shape != size:
            raise ValueError(f"depth image: expected {size} as the colour image, got {self.depth.shape}")
        if self.labels is not None and self.labels.semantic.shape != size:
            raise ValueError(f"label image: expected {size} as the colour image, got {self.labels.semantic.shape}")
        depth = np.asarray(self.depth, dtype=np.float32)
        object.__setattr__(self, "depth", np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0)))
        object.__setattr__(self, "T_map_camera", checked_pose(self.T_map_camera))

    def resized(self, width: int, height: int) -> Frame:
        """The frame at another resolution: colour by area, depth and labels by nearest neighbour (no mixing)."""
        if (self.camera.width, self.camera.height) == (width, height):
            return self
        return replace(
            self,
            color=cv2.resize(self.color, (width, height), interpolation=cv2.INTER_AREA),
            depth=nearest(self.depth, width, height),
            camera=self.camera.resized(width, height),
            labels=None if self.labels is None else self.labels.resized(width, height),
        )


def checked_pose(T: np.ndarray, tolerance: float = 1e-3) -> np.ndarray:
    """The pose as float64 [4, 4] with its rotation made exactly orthonormal.

    Raises:
        ValueError: wrong shape, not finite, or further than `tolerance` from a rigid transform.
    """
    T = np.array(T, dtype=np.float64)
    if T.shape != (4, 4):
        raise ValueError(f"pose: expected a 4x4 matrix, got shape {T.shape}")
    if not np.all(np.isfinite(T)):
        raise ValueError("pose: not finite (NaN or infinity in the matrix)")
    u, _, vt = np.linalg.svd(T[:3, :3])
    R = u @ vt
    error = max(np.abs(R - T[:3, :3]).max(), np.abs(T[3] - (0, 0, 0, 1)).max())
    if error > tolerance or np.linalg.det(R) < 0:
        raise ValueError(
            f"pose: not a rigid transform (off by {error:.3g}, determinant {np.linalg.det(T[:3, :3]):.3g})"
        )
    T[:3, :3] = R
    return T


def nearest(array: np.ndarray, width: int, height: int) -> np.ndarray:
    """An image [H, W] at another resolution: each pixel takes what is nearest to its centre.

    OpenCV's INTER_NEAREST takes the pixel at the upper left corner, which shifts a reduced image by up to half a pixel.
    """
    rows, columns = _nearest_places(array.shape[0], height), _nearest_places(array.shape[1], width)
    return array[rows[:, None], columns]


@lru_cache(maxsize=64)
def _nearest_places(num: int, num_resized: int) -> np.ndarray:
    """Which of `num` pixels in a row is nearest to the centre of each of those that take their place."""
    places = ((np.arange(num_resized) + 0.5) * num / num_resized).astype(np.int64)
    places.flags.writeable = False
    return places
