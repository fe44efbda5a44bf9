"""A furnished world computed from nothing: exact depth, poses, semantic and instance labels.

The world's z axis points up and the floor is z = 0. The same configuration gives the same frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from panoptic_mapper.config import Config, param
from panoptic_mapper.datasets.camera_path import closed_walk
from panoptic_mapper.datasets.floor_plan import Piece, build_shell, furnish, plan_rooms
from panoptic_mapper.datasets.lighting import light_of_frame
from panoptic_mapper.datasets.primitives import Primitive, cast_rays
from panoptic_mapper.datasets.textures import Shader
from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.snapshot import Box

# NYU40 numbers where the class is in NYU40, 42 for plants.
LABEL_SPACE = LabelSpace.from_classes(
    [
        SemanticClass(1, "wall", False),
        SemanticClass(2, "floor", False),
        SemanticClass(3, "cabinet", True),
        SemanticClass(4, "bed", True),
        SemanticClass(5, "chair", True),
        SemanticClass(6, "sofa", True),
        SemanticClass(7, "table", True),
        SemanticClass(8, "door", True),
        SemanticClass(9, "window", True),
        SemanticClass(10, "bookshelf", True),
        SemanticClass(11, "picture", True),
        SemanticClass(20, "rug", True),
        SemanticClass(22, "ceiling", False),
        SemanticClass(25, "television", True),
        SemanticClass(35, "lamp", True),
        SemanticClass(42, "plant", True),
    ]
)


@dataclass(frozen=True)
class SyntheticConfig(Config):
    """What the synthetic sequence is like."""

    seed: int = param(0, "Colours, layout and noise", ge=0)
    num_frames: int = param(120, "Frames of the loop; more frames make smaller steps", ge=1)
    width: int = param(320, "Image width, pixels", ge=8)
    height: int = param(240, "Image height, pixels", ge=8)
    fps: float = param(30.0, "Frames per second that the stamps are made from", gt=0)
    fov_deg: float = param(72.0, "Horizontal field of view, degrees", gt=1, le=170)
    num_rooms: int = param(1, "1: a studio; more: rooms along a corridor, joined by doorways", ge=1, le=32)
    revisits: bool = param(False, "Whether the walk goes through the first room once more before it ends")
    lighting_variance: float = param(0.0, "Light and exposure that change from frame to frame; 1 is strong", ge=0)
    bare_walls: bool = param(False, "Walls, floor and ceiling have one colour each and no texture")
    color_noise: float = param(1.5, "Standard deviation of the colour noise, 0..255", ge=0)
    depth_noise: float = param(0.0, "Standard deviation of the depth noise at 1 m, m; grows with depth squared", ge=0)
    depth_dropout: float = param(0.0, "Share of the pixels without depth, in patches", ge=0, le=1)
    pose_noise_m: float = param(0.0, "Standard deviation of the reported position per axis, m", ge=0)
    pose_noise_deg: float = param(0.0, "Standard deviation of the reported rotation per axis, degrees", ge=0)


@dataclass(frozen=True)
class GroundTruthObject:
    """A thing of the synthetic world."""

    id: int  # the instance id of the labels
    class_index: int
    class_name: str
    box: Box  # in the piece's own axes
    aabb_min: np.ndarray  # [3] m
    aabb_max: np.ndarray  # [3] m


class SyntheticRoom:
    """The synthetic world seen along a closed hand-held walk, as a `Dataset`.

    Frame by frame the same whatever the order of access: the noise of a frame depends on the seed and its index.
    """

    def __init__(self, config: SyntheticConfig | None = None) -> None:
        self.label_space: LabelSpace | None = LABEL_SPACE
        self.config = config = config or SyntheticConfig()
        self.name = f"synthetic-{config.num_rooms}-seed{config.seed}"
        rng = np.random.default_rng([config.seed, config.num_rooms])
        rooms = plan_rooms(config.num_rooms)
        pieces = build_shell(rooms, rng) + [piece for room in rooms for piece in furnish(room, rng)]
        self._primitives: list[Primitive] = []
        self._objects: list[GroundTruthObject] = []
        for piece in pieces:
            self._add(piece)
        self._shader = Shader(self._primitives, config.seed)
        self._class_of = np.array([p.class_index for p in self._primitives], np.int32)
        self._instance_of = np.array([p.instance for p in self._primitives], np.int32)
        self.true_poses = closed_walk(
            rooms, config.num_frames, rng, config.revisits
        )  # [F, 4, 4] T_map_camera without noise
        focal = config.width / 2 / np.tan(np.radians(config.fov_deg) / 2)
        center = ((config.width - 1) / 2, (config.height - 1) / 2)
        self.camera = PinholeCamera(focal, focal, *center, config.width, config.height)

    def __len__(self) -> int:
        return self.config.num_frames

    def __getitem__(self, index: int) -> Frame:
        """Renders frame 0 <= index < len(self)."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)} in {self.name}")
        rng = np.random.default_rng([self.config.seed, 1, index])
        T = self.true_poses[index]
        hits = cast_rays(self._primitives, T, self.camera)
        light = None
        if self.config.lighting_variance:
            strength, seed = self.config.lighting_variance, self.config.seed
            light = light_of_frame(index, len(self), T[:3, 3], strength, seed)
        color = 255 * self._shader.shade(hits, T, self.camera, light)
        if self.config.color_noise:
            color += self.config.color_noise * rng.standard_normal(color.shape, dtype=np.float32)
        color_u8 = np.clip(np.rint(color), 0, 255).astype(np.uint8)
        labels = Segmentation(self._class_of[hits.primitive], self._instance_of[hits.primitive])
        depth = self._sensor_depth(hits.depth, rng)
        stamp_ns = round(index * 1e9 / self.config.fps)
        return Frame(stamp_ns, color_u8, depth, self._reported_pose(T, rng), self.camera, labels)

    def ground_truth_objects(self) -> list[GroundTruthObject]:
        """All things of the world, also those that no frame shows."""
        return list(self._objects)

    def _add(self, piece: Piece) -> None:
        """Puts a piece into the world as solids and, where it is a thing, as an object."""
        class_index = LABEL_SPACE.index_of(piece.class_name)
        is_thing = bool(LABEL_SPACE.is_thing[class_index])
        instance = len(self._objects) + 1 if is_thing else 0
        is_bare = self.config.bare_walls and not is_thing
        R = Rotation.from_euler("z", piece.yaw).as_matrix()
        origin = np.array([piece.x, piece.y, piece.z])
        solids = [
            Primitive(
                part.shape,
                origin + R @ np.array(part.center),
                np.array(part.size) / 2,
                R @ part.rotation,
                replace(part.material, texture="plain", color2=part.material.color) if is_bare else part.material,
                class_index,
                instance,
            )
            for part in piece.parts
        ]
        self._primitives += solids
        if not is_thing:
            return
        corners = np.concatenate([s.corners() for s in solids])
        local = (corners - origin) @ R
        low, high = local.min(axis=0), local.max(axis=0)
        quaternion = np.array([np.cos(piece.yaw / 2), 0, 0, np.sin(piece.yaw / 2)])
        box = Box(origin + R @ ((low + high) / 2), high - low, quaternion)
        self._objects.append(
            GroundTruthObject(instance, class_index, piece.class_name, box, corners.min(axis=0), corners.max(axis=0))
        )

    def _sensor_depth(self, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The depth with noise and holes; exact where neither is asked for."""
        depth = np.where(np.isfinite(depth), depth, np.float32(0))
        if self.config.depth_noise:
            noise = rng.standard_normal(depth.shape, dtype=np.float32)
            depth = np.maximum(depth + np.float32(self.config.depth_noise) * depth**2 * noise, 0)
        if self.config.depth_dropout:
            patches = ndimage.gaussian_filter(rng.standard_normal(depth.shape, dtype=np.float32), 3)
            depth[patches < np.quantile(patches, self.config.depth_dropout)] = 0
        return depth

    def _reported_pose(self, T: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noisy = T.copy()
        noisy[:3, 3] += self.config.pose_noise_m * rng.standard_normal(3)
        turn = Rotation.from_rotvec(np.radians(self.config.pose_noise_deg) * rng.standard_normal(3))
        noisy[:3, :3] = T[:3, :3] @ turn.as_matrix()
        return noisy
