"""Ray casting of analytic solids: boxes, upright cylinders and ellipsoids, each with a label and a material.

A world is a flat list of `Primitive`s. Every solid is intersected only with the pixels of its projected bounding
rectangle, which is what makes a furnished room of some 200 solids cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from panoptic_mapper.frame import PinholeCamera

Shape = Literal["box", "cylinder", "ellipsoid"]

NEAR_M = 0.05  # nothing nearer than this is seen


@dataclass(frozen=True)
class Material:
    """What a surface looks like; the texture is named in `textures.TEXTURES`."""

    texture: str
    color: tuple[float, float, float]  # RGB 0..1
    color2: tuple[float, float, float] = (0.0, 0.0, 0.0)  # the texture's second colour, where it has one
    scale_m: float = 0.1  # size of the pattern


@dataclass(frozen=True)
class Primitive:
    """One solid. A cylinder's axis is its z; an ellipsoid's semi-axes are `half`."""

    shape: Shape
    center: np.ndarray  # [3] m
    half: np.ndarray  # [3] half extents, m
    rotation: np.ndarray  # [3, 3] solid to world
    material: Material
    class_index: int
    instance: int  # 0 = stuff

    def corners(self) -> np.ndarray:  # [8, 3] of the bounding box, world, m
        signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), -1).reshape(8, 3)
        return self.center + (signs * self.half) @ self.rotation.T

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Whether each of `points` [M, 3] lies inside, [M] bool."""
        local = (points - self.center) @ self.rotation / self.half
        if self.shape == "box":
            return np.all(np.abs(local) <= 1, axis=1)
        if self.shape == "cylinder":
            return (np.hypot(local[:, 0], local[:, 1]) <= 1) & (np.abs(local[:, 2]) <= 1)
        return np.linalg.norm(local, axis=1) <= 1


@dataclass(frozen=True)
class Hits:
    """The first solid along each pixel's ray."""

    depth: np.ndarray  # [H, W] float32 m along the optical axis, inf where nothing was hit
    primitive: np.ndarray  # [H, W] int32 row in the list of solids, -1 where nothing was hit


def cast_rays(primitives: list[Primitive], T_world_camera: np.ndarray, camera: PinholeCamera) -> Hits:
    """Casts one ray through each pixel centre of a camera at `T_world_camera` [4, 4]."""
    R, origin = T_world_camera[:3, :3], T_world_camera[:3, 3]
    x = ((np.arange(camera.width) - camera.cx) / camera.fx).astype(np.float32)  # [W] rays are (x, y, 1), so the
    y = ((np.arange(camera.height) - camera.cy) / camera.fy).astype(np.float32)  # [H] ray parameter is the depth
    depth = np.full((camera.height, camera.width), np.inf, np.float32)
    index = np.full(depth.shape, -1, np.int32)
    corners = (np.stack([p.corners() for p in primitives]) - origin) @ R  # [M, 8, 3] camera frame
    nearest = corners[..., 2].min(axis=1)
    for k in np.argsort(nearest):  # front to back, so that hidden solids are skipped
        rect = _bounding_rectangle(corners[k], camera)
        if rect is None or depth[rect].max() < nearest[k]:
            continue
        solid = primitives[k]
        M = solid.rotation.T @ R  # camera to solid
        local_origin = solid.rotation.T @ (origin - solid.center)
        xs, ys = x[rect[1]], y[rect[0], None]
        directions = [(M[a, 0] * xs + (M[a, 1] * ys + M[a, 2])).astype(np.float32) for a in range(3)]
        t = _INTERSECT[solid.shape](local_origin.astype(np.float32), directions, solid.half.astype(np.float32))
        closer = (t < depth[rect]) & (t > NEAR_M)
        depth[rect][closer] = t[closer]
        index[rect][closer] = k
    return Hits(depth, index)


def _bounding_rectangle(corners: np.ndarray, camera: PinholeCamera) -> tuple[slice, slice] | None:
    """Rows and columns of the pixels that can see a convex solid with these corners [8, 3], None if none can."""
    z = corners[:, 2]
    if z.max() <= NEAR_M:
        return None
    if z.min() <= NEAR_M:  # it reaches behind the camera: its projection is unbounded
        return slice(0, camera.height), slice(0, camera.width)
    u = camera.fx * corners[:, 0] / z + camera.cx
    v = camera.fy * corners[:, 1] / z + camera.cy
    left, right = max(0, int(np.floor(u.min()))), min(camera.width, int(np.ceil(u.max())) + 1)
    top, bottom = max(0, int(np.floor(v.min()))), min(camera.height, int(np.ceil(v.max())) + 1)
    if left >= right or top >= bottom:
        return None
    return slice(top, bottom), slice(left, right)


def _slab(origin: np.float32, direction: np.ndarray, half: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Ray parameters where |origin + t direction| <= half begins and ends."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / direction
        a, b = (-half - origin) * inverse, (half - origin) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def _intersect_box(origin: np.ndarray, directions: list[np.ndarray], half: np.ndarray) -> np.ndarray:
    enter, leave = _slab(origin[0], directions[0], half[0])
    for a in (1, 2):
        near, far = _slab(origin[a], directions[a], half[a])
        enter, leave = np.maximum(enter, near), np.minimum(leave, far)
    return np.where(enter <= leave, enter, np.inf)


def _quadric(origin: np.ndarray, directions: list[np.ndarray], half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ray parameters where the sum over the axes of ((origin + t direction) / half)^2 <= 1 begins and ends."""
    o = origin / half
    d = [direction / h for direction, h in zip(directions, half, strict=True)]
    a = sum(di * di for di in d)
    b = sum(oi * di for oi, di in zip(o, d, strict=True))
    discriminant = b * b - a * (np.dot(o, o) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(discriminant)  # NaN where the ray misses; every comparison with it is then false
        return (-b - root) / a, (-b + root) / a


def _intersect_ellipsoid(origin: np.ndarray, directions: list[np.ndarray], half: np.ndarray) -> np.ndarray:
    enter, _ = _quadric(origin, directions, half)
    return np.where(np.isfinite(enter), enter, np.inf)


def _intersect_cylinder(origin: np.ndarray, directions: list[np.ndarray], half: np.ndarray) -> np.ndarray:
    enter, leave = _quadric(origin[:2], directions[:2], half[:2])
    near, far = _slab(origin[2], directions[2], half[2])
    enter, leave = np.maximum(enter, near), np.minimum(leave, far)
    return np.where(enter <= leave, enter, np.inf)


_INTERSECT = {"box": _intersect_box, "cylinder": _intersect_cylinder, "ellipsoid": _intersect_ellipsoid}


def surface_normals(primitives: list[Primitive], local: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Outward unit normals [M, 3] in the solids' own axes at surface points `local` [M, 3] of solids `index` [M]."""
    half = np.stack([p.half for p in primitives]).astype(np.float32)[index]
    shapes = np.array([p.shape for p in primitives])[index]
    unit = local / half
    axis = np.argmax(np.abs(unit), axis=1)
    normals = np.zeros_like(local)
    rows = np.arange(len(local))
    normals[rows, axis] = np.sign(unit[rows, axis])
    round_ = shapes == "ellipsoid"
    normals[round_] = (unit / half)[round_]
    side = (shapes == "cylinder") & (np.hypot(unit[:, 0], unit[:, 1]) >= np.abs(unit[:, 2]))
    normals[side] = (unit / half)[side] * (1, 1, 0)
    cap = (shapes == "cylinder") & ~side
    normals[cap] = np.sign(unit[cap]) * (0, 0, 1)
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)
