"""Keyframes: which frames are kept, what is kept of them, and which are replayed while the map is optimised."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.geometry import inverse_pose


@dataclass(frozen=True)
class KeyframeConfig(Config):
    """A frame becomes a keyframe when the camera has moved this far from the last, or sees this much that is new."""

    translation_m: float = param(0.10, "camera motion that makes a keyframe, m", ge=0)
    rotation_deg: float = param(6.0, "camera turn that makes a keyframe, degrees", ge=0)
    unexplained_share: float = param(0.15, "share of pixels not in the map that makes a keyframe", ge=0, le=1)
    recent: int = param(8, "number of latest keyframes in the recent part of the window", ge=1)


@dataclass
class Keyframe:
    """An observation on the map's device, with its 2D masks and the objects they were matched to."""

    id: int
    stamp_ns: int
    camera: PinholeCamera
    T_map_camera: np.ndarray  # [4, 4] float64
    color: Tensor  # [H, W, 3] uint8
    depth: Tensor  # [H, W] float32 m, 0 = none
    semantic: Tensor  # [H, W] int32 class index, 0 = unlabeled
    mask_index: Tensor  # [H, W] int32, 0 = no mask, 1..K: masks of things
    confidence: Tensor  # [H, W] float32 0..1
    mask_classes: list[int]  # [K + 1] class index of each mask, [0] unused
    mask_scores: list[float]  # [K + 1] mean confidence of each mask, [0] unused
    mask_ids: list[int] = field(default_factory=list)  # [K + 1] public id that a mask was matched to, 0 = none

    @property
    def has_labels(self) -> bool:
        return bool((self.semantic > 0).any())

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.color, self.depth, self.semantic, self.mask_index, self.confidence))

    def T_camera_map(self) -> Tensor:
        """Map to camera frame [4, 4] float32 on the keyframe's device."""
        return torch.from_numpy(inverse_pose(self.T_map_camera)).float().to(self.depth.device)


class KeyframeStore:
    """All keyframes in the order of time."""

    def __init__(self, config: KeyframeConfig, seed: int):
        self.config = config
        self.all: list[Keyframe] = []
        self._random = random.Random(seed)

    def __len__(self) -> int:
        return len(self.all)

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes for k in self.all)

    def moved_enough(self, T_map_camera: np.ndarray) -> bool:
        """Whether the camera has left the last keyframe's pose by translation or rotation (or there is none)."""
        if not self.all:
            return True
        T = inverse_pose(self.all[-1].T_map_camera) @ T_map_camera
        angle = np.degrees(np.arccos(np.clip((np.trace(T[:3, :3]) - 1) / 2, -1, 1)))
        return bool(np.linalg.norm(T[:3, 3]) >= self.config.translation_m or angle >= self.config.rotation_deg)

    def add(self, frame: Frame, segmentation: Segmentation | None, device: torch.device) -> Keyframe:
        """Keeps a frame with the labels of its 2D model (None: geometry only)."""
        if segmentation is None:
            nothing = np.zeros(frame.depth.shape, dtype=np.int32)
            segmentation = Segmentation(nothing, nothing)
        mask_index, classes, scores = _numbered_masks(segmentation)
        confidence = segmentation.confidence
        keyframe = Keyframe(
            id=len(self.all),
            stamp_ns=frame.stamp_ns,
            camera=frame.camera,
            T_map_camera=frame.T_map_camera,
            color=torch.tensor(frame.color, device=device),
            depth=torch.tensor(frame.depth, device=device),
            semantic=torch.tensor(segmentation.semantic, dtype=torch.int32, device=device),
            mask_index=torch.tensor(mask_index, device=device),
            confidence=torch.tensor(
                np.ones(mask_index.shape, np.float32) if confidence is None else confidence, device=device
            ),
            mask_classes=classes,
            mask_scores=scores,
            mask_ids=[0] * len(classes),
        )
        self.all.append(keyframe)
        return keyframe

    def sample(self, step: int) -> Keyframe:
        """The keyframe to optimise at a step: in turn the latest, a recent and any one: nothing is forgotten."""
        if step % 3 == 0:
            return self.all[-1]
        if step % 3 == 1:
            return self._random.choice(self.all[-self.config.recent :])
        return self._random.choice(self.all)

    def resolve_ids(self, resolve: dict[int, int]) -> None:
        """Replaces public ids of masks after merges (`resolve`: gone id -> living id or 0)."""
        for keyframe in self.all:
            keyframe.mask_ids = [resolve.get(id, id) for id in keyframe.mask_ids]


def _numbered_masks(segmentation: Segmentation) -> tuple[np.ndarray, list[int], list[float]]:
    """Masks numbered 1..K with their class (the most frequent one inside) and mean confidence."""
    instance = np.where(segmentation.semantic > 0, segmentation.instance, 0)
    ids, index = np.unique(instance, return_inverse=True)
    index = index.reshape(instance.shape)
    if len(ids) == 0 or ids[0] != 0:
        index = index + 1  # no pixel without a mask: keep 0 free for it
    num = int(index.max(initial=0)) + 1
    num_classes = int(segmentation.semantic.max(initial=0)) + 1
    votes = np.bincount(index.ravel() * num_classes + segmentation.semantic.ravel(), minlength=num * num_classes)
    classes = votes.reshape(num, num_classes).argmax(1)
    scores = np.ones(num)
    if segmentation.confidence is not None:
        area = np.bincount(index.ravel(), minlength=num)
        total = np.bincount(index.ravel(), segmentation.confidence.ravel(), minlength=num)
        scores = total / np.maximum(area, 1)
    return index.astype(np.int32), classes.tolist(), scores.tolist()
