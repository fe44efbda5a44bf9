"""A model of what 2D panoptic networks get wrong: classes, missing, split and merged instances, borders, confidence."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from panoptic_mapper.config import Config, param
from panoptic_mapper.distinct_values import DistinctValues
from panoptic_mapper.frame import Segmentation
from panoptic_mapper.label_space import UNLABELED, LabelSpace

JITTER_WAVELENGTH = 8  # borders wander over about this many times the jitter, pixels per pixel
CONFIDENT = 0.9  # mean confidence of a right label
DOUBTFUL = 0.65  # mean confidence of a wrong class: networks are often sure of their mistakes


@dataclass(frozen=True)
class NoiseConfig(Config):
    """Shares are probabilities per instance and frame. Instance ids are renumbered at random whatever they are."""

    flip: float = param(0.0, "Share of the instances that get the class of another kind of thing", ge=0, le=1)
    drop: float = param(0.0, "Share of the instances that are missed: their pixels become unlabeled", ge=0, le=1)
    split: float = param(0.0, "Share of the instances that are cut in two", ge=0, le=1)
    merge: float = param(0.0, "Share of the instances that are joined with a neighbour", ge=0, le=1)
    jitter_px: float = param(0.0, "Standard deviation of the borders' displacement, pixels", ge=0)
    confidence_noise: float = param(0.0, "Standard deviation of the confidence; 0 leaves it as it is", ge=0, le=1)

    @staticmethod
    def from_level(level: str) -> NoiseConfig:
        """One of the named levels.

        Raises:
            ValueError: no such level; the levels are named.
        """
        if level not in NOISE_LEVELS:
            raise ValueError(f"noise level: expected one of {', '.join(NOISE_LEVELS)}, got '{level}'")
        return NOISE_LEVELS[level]


NOISE_LEVELS = {
    "clean": NoiseConfig(),
    "moderate": NoiseConfig(flip=0.10, drop=0.15, split=0.10, merge=0.10, jitter_px=3, confidence_noise=0.1),
    "hard": NoiseConfig(flip=0.25, drop=0.35, split=0.20, merge=0.20, jitter_px=6, confidence_noise=0.15),
}


def corrupt(
    segmentation: Segmentation, label_space: LabelSpace, config: NoiseConfig, rng: np.random.Generator
) -> Segmentation:
    """The labels as a network of that quality might have given them, with new instance ids 1..K.

    A pure function of its arguments in which the values of the given ids play no part: only which pixels share one.

    Args:
        rng: the caller derives it from a seed and the frame, `np.random.default_rng([seed, frame.stamp_ns])`, so that a
            frame gets the same labels whatever was looked at before.
    """
    semantic = segmentation.semantic.astype(np.int32, copy=False)
    noisy = Segmentation(semantic, _numbered_by_place(segmentation.instance), segmentation.confidence)
    noisy = _jitter_borders(noisy, config.jitter_px, rng)
    noisy = _merge(noisy, config.merge, rng)
    noisy = _split(noisy, config.split, rng)
    noisy, is_flipped = _flip(noisy, label_space, config.flip, rng)
    noisy = _drop(noisy, config.drop, rng)
    noisy = _noisy_confidence(noisy, is_flipped, config.confidence_noise, rng)
    return replace(noisy, instance=_permuted(noisy.instance, rng))


def _jitter_borders(segmentation: Segmentation, jitter_px: float, rng: np.random.Generator) -> Segmentation:
    """Reads every pixel's label from a smoothly displaced place, so that borders wander and regions stay whole."""
    if jitter_px == 0:
        return segmentation
    height, width = segmentation.semantic.shape
    step = JITTER_WAVELENGTH * max(jitter_px, 1)
    coarse = (2, int(np.ceil(height / step)) + 3, int(np.ceil(width / step)) + 3)
    # Cubic interpolation of independent knots keeps about half of their deviation.
    knots = rng.standard_normal(coarse).astype(np.float32) * np.float32(jitter_px)
    v, u = np.indices((height, width), dtype=np.float32)
    at_v, at_u = v / np.float32(step) + 1, u / np.float32(step) + 1
    dv, du = (cv2.remap(k, at_u, at_v, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT) for k in knots)
    scale = np.float32(jitter_px) / np.sqrt(np.mean(dv**2 + du**2) / 2 + np.float32(1e-12))
    rows = np.clip(np.rint(v + scale * dv), 0, height - 1).astype(np.intp)
    cols = np.clip(np.rint(u + scale * du), 0, width - 1).astype(np.intp)
    confidence = None if segmentation.confidence is None else segmentation.confidence[rows, cols]
    return Segmentation(segmentation.semantic[rows, cols], segmentation.instance[rows, cols], confidence)


def _merge(segmentation: Segmentation, share: float, rng: np.random.Generator) -> Segmentation:
    """Joins instances with an adjacent one; both then have the class of the larger."""
    if share == 0:
        return segmentation
    ids, sizes = _instances(segmentation.instance)
    if len(ids) < 2:
        return segmentation
    semantic, instance = segmentation.semantic.copy(), segmentation.instance.copy()
    size_of = dict(zip(ids.tolist(), sizes.tolist(), strict=True))
    neighbours = _adjacency(instance)
    used: set[int] = set()
    for first in ids[rng.random(len(ids)) < share].tolist():
        candidates = sorted(neighbours.get(first, set()) - used)
        if first in used or not candidates:
            continue
        second = candidates[rng.integers(len(candidates))]
        used |= {first, second}  # an instance takes part in one merge only
        large, small = (first, second) if size_of[first] >= size_of[second] else (second, first)
        class_index = semantic[instance == large][0]
        semantic[instance == small] = class_index
        instance[instance == small] = large
    return replace(segmentation, semantic=semantic, instance=instance)


def _split(segmentation: Segmentation, share: float, rng: np.random.Generator) -> Segmentation:
    """Cuts instances in two along a line of random direction through their median."""
    if share == 0:
        return segmentation
    ids, _ = _instances(segmentation.instance)
    if len(ids) == 0:
        return segmentation
    instance = segmentation.instance.copy()
    new_id = int(ids.max()) + 1
    for old in ids[rng.random(len(ids)) < share].tolist():
        rows, cols = np.nonzero(instance == old)
        angle = rng.uniform(0, np.pi)
        along = np.cos(angle) * cols + np.sin(angle) * rows
        beyond = along > np.median(along)
        if beyond.any():
            instance[rows[beyond], cols[beyond]] = new_id
            new_id += 1
    return replace(segmentation, instance=instance)


def _flip(
    segmentation: Segmentation, label_space: LabelSpace, share: float, rng: np.random.Generator
) -> tuple[Segmentation, np.ndarray]:
    """Gives instances another thing class; also returns the mask [H, W] of the pixels concerned."""
    is_flipped = np.zeros(segmentation.semantic.shape, dtype=bool)
    things = np.flatnonzero(label_space.is_thing)
    if share == 0 or len(things) < 2:
        return segmentation, is_flipped
    ids, _ = _instances(segmentation.instance)
    semantic = segmentation.semantic.copy()
    for flipped in ids[rng.random(len(ids)) < share]:
        mask = segmentation.instance == flipped
        others = things[things != semantic[mask][0]]
        semantic[mask] = others[rng.integers(len(others))]
        is_flipped |= mask
    return replace(segmentation, semantic=semantic), is_flipped


def _drop(segmentation: Segmentation, share: float, rng: np.random.Generator) -> Segmentation:
    """Misses instances. Their pixels are unlabeled: that nothing is said about them is not the same as background."""
    if share == 0:
        return segmentation
    ids, _ = _instances(segmentation.instance)
    if len(ids) == 0:
        return segmentation
    is_dropped = np.isin(segmentation.instance, ids[rng.random(len(ids)) < share])
    semantic = np.where(is_dropped, UNLABELED, segmentation.semantic).astype(np.int32)
    instance = np.where(is_dropped, 0, segmentation.instance).astype(np.int32)
    confidence = segmentation.confidence
    if confidence is not None:
        confidence = np.where(is_dropped, 0, confidence).astype(np.float32)
    return Segmentation(semantic, instance, confidence)


def _noisy_confidence(
    segmentation: Segmentation, is_flipped: np.ndarray, sigma: float, rng: np.random.Generator
) -> Segmentation:
    """One confidence per instance and stuff class, lower on average where the class is wrong, 0 where unlabeled."""
    if sigma == 0:
        return segmentation
    segments = DistinctValues.of(segmentation.semantic.astype(np.int64) << 32 | segmentation.instance)
    mean = np.where(is_flipped.reshape(-1)[segments.first_pixels], DOUBTFUL, CONFIDENT)
    score = np.clip(mean + sigma * rng.standard_normal(len(segments.values)), 0.05, 1)
    score = np.where(segments.values >> 32 == UNLABELED, 0, score).astype(np.float32)
    confidence = segments.replaced_by(score)
    if segmentation.confidence is not None:
        confidence = confidence * segmentation.confidence
    return replace(segmentation, confidence=confidence.astype(np.float32))


def _permuted(instance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ids 1..K in an order that has nothing to do with the ids before."""
    distinct = DistinctValues.of(instance)
    new_ids = np.zeros(len(distinct.values), dtype=np.int32)
    is_instance = distinct.values > 0
    new_ids[is_instance] = 1 + rng.permutation(int(is_instance.sum()))
    return distinct.replaced_by(new_ids)


def _numbered_by_place(instance: np.ndarray) -> np.ndarray:
    """Ids 1..K in the order of each instance's first pixel, whatever the ids were."""
    distinct = DistinctValues.of(instance)
    is_instance = np.flatnonzero(distinct.values > 0)
    new_ids = np.zeros(len(distinct.values), dtype=np.int32)
    new_ids[is_instance[np.argsort(distinct.first_pixels[is_instance])]] = 1 + np.arange(len(is_instance))
    return distinct.replaced_by(new_ids)


def _instances(instance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the instances, ascending, and their sizes in pixels."""
    distinct = DistinctValues.of(instance)
    is_instance = distinct.values > 0
    return distinct.values[is_instance], distinct.counts[is_instance]


def _adjacency(instance: np.ndarray) -> dict[int, set[int]]:
    """The instances that touch each instance (4-neighbourhood)."""
    pairs = np.concatenate(
        [
            np.stack([instance[:, :-1], instance[:, 1:]], -1).reshape(-1, 2),
            np.stack([instance[:-1], instance[1:]], -1).reshape(-1, 2),
        ]
    )
    pairs = np.unique(pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs > 0).all(axis=1)], axis=0)
    neighbours: dict[int, set[int]] = {}
    for a, b in pairs.tolist():
        neighbours.setdefault(a, set()).add(b)
        neighbours.setdefault(b, set()).add(a)
    return neighbours
