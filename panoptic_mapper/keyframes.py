"""Keyframes: which frames are kept, what is kept of them, and which are replayed while the map is optimised."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper.config import Config, param
from panoptic_mapper.covisibility import CovisibilityGraph
from panoptic_mapper.distinct_values import Runs
from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.geometry import inverse_pose
from panoptic_mapper.instances import Observations, Sighting
from panoptic_mapper.mask_table import MaskTable
from panoptic_mapper.occlusion import depth_limits
from panoptic_mapper.transfers import to_device, to_device_together, to_host


@dataclass(frozen=True)
class KeyframeConfig(Config):
    """A frame becomes a keyframe when the camera has moved this far from the last, or sees this much that is new."""

    translation_m: float = param(0.06, "camera motion that makes a keyframe, m", ge=0)
    rotation_deg: float = param(4.0, "camera turn that makes a keyframe, degrees", ge=0)
    unexplained_share: float = param(0.15, "share of pixels that no keyframe sees that makes one", ge=0, le=1)
    recent: int = param(8, "number of latest keyframes in the recent part of the window", ge=1)


@dataclass(frozen=True)
class HostImages:
    """Those images of a keyframe that are asked in host memory."""

    depth: np.ndarray  # [H, W] float32 m, 0 = none
    masks: Runs  # of the image of masks


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
    mask_px: list[int]  # [K + 1] pixels of each mask, [0] unused
    mask_ids: list[int] = field(default_factory=list)  # [K + 1] public id that a mask was matched to, 0 = none
    disputed: Tensor | None = None  # [H, W] bool, pixels in a mask of one object that the map says are of another
    revision: int = -1  # that of the queries to which the masks were last matched
    sighting: Sighting | None = None  # what the masks then said about the queries
    num_steps: int = 0  # how often it was chosen for optimisation
    host_images: HostImages | None = None  # while it is the latest: nothing else is to be copied back from a GPU

    @cached_property
    def has_labels(self) -> bool:  # asked at every step, and on a GPU the answer makes it wait
        return bool((self.semantic > 0).any())

    @cached_property
    def depth_limits(self) -> Tensor:
        """How far the camera can have seen, see `occlusion.depth_limits`."""
        return depth_limits(self.depth)

    @property
    def nbytes(self) -> int:
        images = (self.color, self.depth, self.semantic, self.mask_index, self.confidence, self.disputed)
        return sum(image.nbytes for image in images if image is not None)

    def images_on_host(self) -> HostImages:
        """Depth and masks in host memory; a GPU is waited for where they are not kept there."""
        if self.host_images is None:
            depth, mask_index = to_host(self.depth, self.mask_index)
            return HostImages(depth.numpy(), Runs.of(mask_index.numpy()))
        return self.host_images

    def set_labels(self, segmentation: Segmentation) -> None:
        """Gives a keyframe that has none its labels [H, W], which came later than the frame."""
        masks, of_masks = _numbered_masks(segmentation)
        images = to_device_together(_label_images(segmentation, masks), self.depth.device)
        for name, value in (_label_fields(images) | of_masks).items():
            setattr(self, name, value)
        self.host_images = None
        self.has_labels = segmentation.has_classes

    def T_camera_map(self) -> Tensor:
        """Map to camera frame [4, 4] float32 on the keyframe's device."""
        return to_device(inverse_pose(self.T_map_camera).astype(np.float32), self.depth.device)


class KeyframeStore:
    """All keyframes in the order of time, and which of them show the same."""

    def __init__(self, config: KeyframeConfig, seed: int):
        self.config = config
        self.all: list[Keyframe] = []  # a keyframe's id is its place here
        self.covisibility = CovisibilityGraph()
        self._masks = MaskTable()
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
        if np.linalg.norm(T[:3, 3]) >= self.config.translation_m:
            return True
        cosine = min(max((float(T[0, 0] + T[1, 1] + T[2, 2]) - 1) / 2, -1.0), 1.0)
        return math.degrees(math.acos(cosine)) >= self.config.rotation_deg

    def shows_enough_new(self, depth: np.ndarray, camera: PinholeCamera, T_map_camera: np.ndarray) -> bool:
        """Whether enough of an image [H, W] m near the latest keyframe is seen by none; asked of depth images alone."""
        return self.covisibility.unseen_share(depth, camera, T_map_camera) > self.config.unexplained_share

    def add(self, frame: Frame, segmentation: Segmentation | None, device: torch.device) -> Keyframe:
        """Keeps a frame with the labels of its 2D model (None: geometry only)."""
        is_labelled = segmentation is not None
        if segmentation is None:
            nothing = np.zeros(frame.depth.shape, dtype=np.int32)
            segmentation = Segmentation(nothing, nothing)
        masks, of_masks = _numbered_masks(segmentation)
        images, label_images = (frame.color, frame.depth), _label_images(segmentation, masks)
        if is_labelled:
            color, depth, *labels = to_device_together((*images, *label_images), device)
        else:  # in a piece of their own, which is freed when others come in their place
            (color, depth), labels = to_device_together(images, device), to_device_together(label_images, device)
        if self.all:
            self.all[-1].host_images = None
        keyframe = Keyframe(
            id=len(self.all),
            stamp_ns=frame.stamp_ns,
            camera=frame.camera,
            T_map_camera=frame.T_map_camera,
            color=color,
            depth=depth,
            host_images=HostImages(frame.depth, masks),
            **_label_fields(labels),
            **of_masks,
        )
        keyframe.has_labels = segmentation.has_classes
        self.all.append(keyframe)
        self.covisibility.add(frame.depth, frame.camera, frame.T_map_camera)
        return keyframe

    def unlabelled(self, stamp_ns: int) -> Keyframe | None:
        """The latest keyframe of a time that has no labels, or None."""
        return next((k for k in reversed(self.all) if k.stamp_ns == stamp_ns and not k.has_labels), None)

    def restore(self, keyframes: list[Keyframe], seen_by: list[dict[int, float]]) -> None:
        """Fills an empty store with saved keyframes and, for each, those that see a share of it."""
        for keyframe, neighbours in zip(keyframes, seen_by, strict=True):
            depth = keyframe.depth.cpu().numpy()
            self.covisibility.restore(depth, keyframe.camera, keyframe.T_map_camera, neighbours)
        self.all = keyframes

    def sample(self, step: int) -> Keyframe:
        """The keyframe to optimise at a step: in turn the latest, a recent, and an old one.

        Every other old one is among those that see what the latest sees, because its surfaces are being changed now;
        the rest are any, so that nothing is forgotten. Of these, the less optimised are chosen more often.
        """
        turn = step % 3
        if turn == 0:
            keyframe = self.all[-1]
        elif turn == 1:
            keyframe = self._random.choice(self.all[-self.config.recent :])
        else:
            keyframe = self._old_one()
        keyframe.num_steps += 1
        return keyframe

    def neighbours(self, keyframe: Keyframe, num: int) -> list[Keyframe]:
        """Up to `num` different keyframes that see what a keyframe sees, chosen in proportion to how much."""
        shares = dict(self.covisibility.seen_by[keyframe.id])
        chosen: list[Keyframe] = []
        while shares and len(chosen) < num:
            id = self._random.choices(list(shares), list(shares.values()))[0]
            del shares[id]
            chosen.append(self.all[id])
        return chosen

    def _old_one(self) -> Keyframe:
        """A keyframe before the recent ones that sees what the latest sees, or, as often, any."""
        seen_by = self.covisibility.seen_by[self.all[-1].id]
        old = {id: share for id, share in seen_by.items() if id < len(self.all) - self.config.recent}
        if old and self._random.random() < 0.5:
            return self._weighted([self.all[id] for id in old], list(old.values()))
        return self._weighted(self.all, [1.0] * len(self.all))

    def _weighted(self, keyframes: Sequence[Keyframe], weights: list[float]) -> Keyframe:
        """One of the keyframes, by weight, the less the more it was optimised already."""
        fresh = [w / (1 + k.num_steps) for k, w in zip(keyframes, weights, strict=True)]
        return self._random.choices(keyframes, fresh)[0]

    def observations(self) -> Observations:
        """All masks with the ids of the objects that they were matched to.

        Where several masks of a keyframe show one object, each has the weight of its share of the pixels.
        """
        return self._masks.observations(self.all)

    def resolve_ids(self, resolve: dict[int, int]) -> None:
        """Replaces public ids of masks after merges (`resolve`: gone id -> living id or 0)."""
        for keyframe in self.all:
            keyframe.mask_ids = [resolve.get(id, id) for id in keyframe.mask_ids]


def _label_images(segmentation: Segmentation, masks: Runs) -> tuple[np.ndarray, ...]:
    """Semantic and mask index [H, W] int32 as a keyframe has them, and the confidence [H, W] where it is given."""
    given = () if segmentation.confidence is None else (segmentation.confidence,)
    return segmentation.semantic.astype(np.int32, copy=False), masks.image(), *given


def _label_fields(images: list[Tensor]) -> dict[str, Any]:
    """The fields of a keyframe that are `_label_images`, on the device."""
    semantic, mask_index, *given = images
    confidence = given[0] if given else torch.ones(semantic.shape, device=semantic.device)
    return {"semantic": semantic, "mask_index": mask_index, "confidence": confidence}


def _numbered_masks(segmentation: Segmentation) -> tuple[Runs, dict[str, Any]]:
    """Masks numbered 1..K [H, W] int32, and the fields with their class (the most frequent inside), score and size."""
    pairs = segmentation.segments
    ids, classes, px = pairs.values >> 32, pairs.values & 0xFFFFFFFF, pairs.counts
    in_mask = np.flatnonzero((ids > 0) & (classes > 0))
    present, mask = np.unique(ids[in_mask], return_inverse=True)
    numbers = np.zeros(len(ids), np.int32)
    numbers[in_mask] = mask + 1
    votes = np.zeros((len(present) + 1, int(classes.max(initial=0)) + 1), np.int64)
    votes[numbers[in_mask], classes[in_mask]] = px[in_mask]
    area = np.bincount(numbers, px, len(votes)).astype(np.int64)
    scores = np.ones(len(area))
    if segmentation.confidence is not None:
        sums = np.add.reduceat(segmentation.confidence.ravel(), pairs.runs.starts, dtype=np.float64)
        scores = np.bincount(numbers[pairs.of_run], sums, len(area)) / np.maximum(area, 1)
    fields = {
        "mask_classes": votes.argmax(1).tolist(),
        "mask_scores": scores.tolist(),
        "mask_px": area.tolist(),
        "mask_ids": [0] * len(area),
    }
    return pairs.runs_with(numbers), fields
