"""The masks of all keyframes as arrays, which are asked after every keyframe: what did not change is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from panoptic_mapper.instances import Observations


class HasMasks(Protocol):
    """A keyframe, as far as it is asked here; index 0 of each list is unused."""

    stamp_ns: int
    mask_ids: list[int]  # [K + 1] public id that a mask was matched to, 0 = none
    mask_classes: list[int]  # [K + 1]
    mask_scores: list[float]  # [K + 1]
    mask_px: list[int]  # [K + 1]


@dataclass(frozen=True)
class _Masks:
    """Those of one keyframe, with what they were made of."""

    keyframe: HasMasks
    mask_classes: list[int]
    mask_ids: list[int]
    ids: np.ndarray  # [K] int64
    classes: np.ndarray  # [K] int64
    weights: np.ndarray  # [K] float32

    @staticmethod
    def of(keyframe: HasMasks) -> _Masks:
        ids, classes, px = (np.array(x, np.int64) for x in (keyframe.mask_ids, keyframe.mask_classes, keyframe.mask_px))
        _, object_of_mask = np.unique(ids, return_inverse=True)
        total_px = np.bincount(object_of_mask, px)[object_of_mask]
        weights = np.array(keyframe.mask_scores) * px / np.maximum(total_px, 1)
        kept = keyframe.mask_classes, list(keyframe.mask_ids)
        return _Masks(keyframe, *kept, ids[1:], classes[1:], weights[1:].astype(np.float32))

    def is_of(self, keyframe: HasMasks) -> bool:
        """Whether they are what the keyframe has now: labels come as new lists, ids are written into theirs."""
        same_labels = self.keyframe is keyframe and self.mask_classes is keyframe.mask_classes
        return same_labels and self.mask_ids == keyframe.mask_ids


class MaskTable:
    """Makes `Observations` of keyframes; arrays of a keyframe are made anew when its masks or their ids changed."""

    def __init__(self) -> None:
        self._masks: list[_Masks] = []
        self._told = _observations([])

    def observations(self, keyframes: Sequence[HasMasks]) -> Observations:
        """All masks with the ids of the objects that they were matched to.

        Where several masks of a keyframe show one object, each has the weight of its share of the pixels.
        They are the same object as before while nothing has changed.
        """
        old = self._masks
        self._masks = [m if m.is_of(k) else _Masks.of(k) for m, k in zip(old, keyframes, strict=False)]
        self._masks += [_Masks.of(keyframe) for keyframe in keyframes[len(old) :]]
        if len(self._masks) != len(old) or any(now is not before for now, before in zip(self._masks, old, strict=True)):
            self._told = _observations(self._masks)
        return self._told


def _observations(of_keyframes: list[_Masks]) -> Observations:
    num_masks = [len(m.ids) for m in of_keyframes]
    return Observations(
        ids=_joined([m.ids for m in of_keyframes], np.int64),
        classes=_joined([m.classes for m in of_keyframes], np.int64),
        weights=_joined([m.weights for m in of_keyframes], np.float32),
        frames=torch.from_numpy(np.repeat(np.arange(len(num_masks)), num_masks)),
        stamps_ns=torch.tensor([m.keyframe.stamp_ns for m in of_keyframes], dtype=torch.int64),
    )


def _joined(parts: list[np.ndarray], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts]))
