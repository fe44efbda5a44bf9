"""A labelled triangle mesh of the map, for planners and viewers: TSDF fusion of its views from the keyframes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import cv2
import numpy as np
from scipy.spatial import cKDTree

from panoptic_mapper.geometry import inverse_pose
from panoptic_mapper.label_space import distinct_color
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.snapshot import MapSnapshot, PanopticView

Coloring = Literal["instance", "semantic", "rgb"]
COLORINGS: tuple[Coloring, ...] = ("instance", "semantic", "rgb")
Progress = Callable[[int, int], None]  # keyframes done, keyframes in all

BLOCK_VOXELS = 16  # edge of a block; only blocks near a surface have memory
TRUNCATION_VOXELS = 4.0  # signed distances count up to this far from the surface
MIN_VIEWS = 2.0  # a surface that fewer keyframes show is left out, unless the map has fewer
MIN_ALPHA = 0.7  # pixels with less opacity have no trustworthy depth
MAX_DEPTH_STEP = 0.08  # relative to the nearer pixel: at larger steps the rendered depth mixes two surfaces
STUFF_STRENGTH = 0.55  # of class colours where there is no object, so that objects stand out
LABEL_DISTANCE_M = 0.15  # a vertex farther than this from every Gaussian has no label


@dataclass(frozen=True)
class LabeledMesh:
    """Triangles with the label of the map at each vertex."""

    vertices: np.ndarray  # [V, 3] float32 map frame, m
    triangles: np.ndarray  # [T, 3] int32 rows of `vertices`, counter-clockwise seen from free space
    colors: np.ndarray  # [V, 3] uint8 RGB
    class_ids: np.ndarray  # [V] int32 public class id, 0 = unlabeled
    instance_ids: np.ndarray  # [V] int32 public object id, 0 = none


def fuse_mesh(
    mapper: PanopticMapper, voxel_m: float = 0.025, coloring: Coloring = "instance", progress: Progress | None = None
) -> LabeledMesh:
    """Fuses the map's rendered depth and colour at the poses of its keyframes, and labels the vertices.

    Args:
        voxel_m: edge of a voxel, m; details smaller than about two of them are lost.
        coloring: "instance": objects in a colour of their own, all else pale in the colour of its class.

    Raises:
        ValueError: the map shows no surface, an argument is out of range, or Open3D is not installed.
    """
    if not 0.002 <= voxel_m <= 1.0:
        raise ValueError(f"voxel_m: expected 0.002..1 m, got {voxel_m}")
    if coloring not in COLORINGS:
        raise ValueError(f"coloring: expected one of {', '.join(COLORINGS)}, got '{coloring}'")
    keyframes = mapper.keyframes.all
    if not keyframes:
        raise ValueError("the map is empty: there is nothing to make a mesh of")
    volume = TsdfVolume(voxel_m)
    for done, keyframe in enumerate(keyframes, start=1):
        view = mapper.render(keyframe.camera, keyframe.T_map_camera)
        volume.integrate(view, keyframe.camera.matrix, inverse_pose(keyframe.T_map_camera))
        if progress is not None:
            progress(done, len(keyframes))
    vertices, triangles, rgb = volume.extract(min(MIN_VIEWS, len(keyframes)))
    if len(triangles) == 0:
        raise ValueError("no keyframe shows a surface that is opaque enough for a mesh")
    return labeled_mesh(vertices, triangles, rgb, mapper.snapshot(), coloring)


class TsdfVolume:
    """A sparse volume of truncated signed distances and colours (Open3D's VoxelBlockGrid on the CPU)."""

    def __init__(self, voxel_m: float) -> None:
        self._o3d = o3d = _open3d()
        self._grid = o3d.t.geometry.VoxelBlockGrid(
            attr_names=("tsdf", "weight", "color"),
            attr_dtypes=(o3d.core.float32, o3d.core.float32, o3d.core.float32),
            attr_channels=((1), (1), (3)),
            voxel_size=voxel_m,
            block_resolution=BLOCK_VOXELS,
            block_count=1000,  # grows by itself
            device=o3d.core.Device("CPU:0"),
        )

    def integrate(self, view: PanopticView, intrinsics: np.ndarray, T_camera_map: np.ndarray) -> None:
        """Adds a view, seen by a camera with `intrinsics` [3, 3] from T_camera_map [4, 4]."""
        depth = fusible_depth(view)
        if not depth.any():
            return
        image, tensor = self._o3d.t.geometry.Image, self._o3d.core.Tensor
        depth_image = image(np.ascontiguousarray(depth))
        color_image = image(np.ascontiguousarray(view.color.astype(np.float32) / 255))
        K, T = tensor(intrinsics.astype(np.float64)), tensor(T_camera_map.astype(np.float64))
        scale_and_limit = {"depth_scale": 1.0, "depth_max": float(depth.max()) + 1e-3}
        trunc = {"trunc_voxel_multiplier": TRUNCATION_VOXELS}
        blocks = self._grid.compute_unique_block_coordinates(depth_image, K, T, **scale_and_limit, **trunc)
        self._grid.integrate(blocks, depth_image, color_image, K, K, T, **scale_and_limit, **trunc)

    def extract(self, min_views: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vertices [V, 3] float32, triangles [T, 3] int32 and colours [V, 3] uint8 where enough views agree."""
        nothing = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32), np.zeros((0, 3), np.uint8)
        if self._grid.hashmap().size() == 0:
            return nothing
        mesh = self._grid.extract_triangle_mesh(weight_threshold=min_views - 0.5)
        if "positions" not in mesh.vertex or len(mesh.vertex.positions) == 0:
            return nothing
        colors = np.clip(mesh.vertex.colors.numpy() * 255, 0, 255).round().astype(np.uint8)
        return mesh.vertex.positions.numpy(), mesh.triangle.indices.numpy().astype(np.int32), colors


def fusible_depth(view: PanopticView) -> np.ndarray:  # [H, W] float32 m, 0 = leave out
    """The depth of a view without half-transparent pixels and without the rims of objects, where it mixes surfaces."""
    depth = np.where(view.alpha >= MIN_ALPHA, view.depth, 0).astype(np.float32)
    highest, lowest = cv2.dilate(depth, np.ones((3, 3))), cv2.erode(depth, np.ones((3, 3)))
    return np.where(highest - lowest <= MAX_DEPTH_STEP * depth, depth, 0).astype(np.float32)


def labeled_mesh(
    vertices: np.ndarray,  # [V, 3] map frame, m
    triangles: np.ndarray,  # [T, 3]
    rgb: np.ndarray,  # [V, 3] uint8
    snapshot: MapSnapshot,
    coloring: Coloring,
) -> LabeledMesh:
    """Gives every vertex the label of the nearest Gaussian, and its colour."""
    classes, instances = np.zeros(len(vertices), np.int32), np.zeros(len(vertices), np.int32)
    if len(vertices) and len(snapshot.points):
        distances, nearest = cKDTree(snapshot.points).query(vertices, distance_upper_bound=LABEL_DISTANCE_M)
        near = np.isfinite(distances)
        classes[near] = snapshot.class_indices[nearest[near]]
        instances[near] = snapshot.instance_ids[nearest[near]]
    colors = rgb
    if coloring != "rgb":
        colors = snapshot.label_space.colors[classes]
    if coloring == "instance":
        colors = _instance_colors(instances, colors)
    return LabeledMesh(vertices, triangles, colors, snapshot.label_space.ids[classes].astype(np.int32), instances)


def _instance_colors(instances: np.ndarray, class_colors: np.ndarray) -> np.ndarray:
    """Colours [V, 3] uint8: each object's own, and those of the classes, paled, where there is no object."""
    pale = (255 - (255 - class_colors.astype(np.float32)) * STUFF_STRENGTH).astype(np.uint8)
    ids, inverse = np.unique(instances, return_inverse=True)
    own = np.array([distinct_color(int(i)) for i in ids], np.uint8).reshape(-1, 3)[inverse]
    return np.where((instances > 0)[:, None], own, pale)


def _open3d() -> ModuleType:
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise ValueError(
            f"a mesh needs Open3D, which does not load here ({error}); `panoptic-mapper doctor` names what brings it"
        ) from error
    return open3d
