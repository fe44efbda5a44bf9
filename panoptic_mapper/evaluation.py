"""Evaluation of a map on posed frames: renders each and compares it with what the frame holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from panoptic_mapper.floaters import MIN_FRAMES, MIN_GAP_M, MIN_GAP_SHARE, FloaterCounter, Floaters
from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.image_metrics import ImageMetrics
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.label_spaces import class_table
from panoptic_mapper.metrics import MIN_PIXELS, PanopticMetrics
from panoptic_mapper.object_metrics import ObjectMetrics
from panoptic_mapper.point_metrics import LabeledPoints, SurfaceSampler, point_quality
from panoptic_mapper.snapshot import MapSnapshot, PanopticView

MIN_DISTANCE_M = 0.15
MIN_CLEAR_SHARE = 0.05


class Renderer(Protocol):
    """What of a mapper is evaluated."""

    label_space: LabelSpace

    def render(self, camera: PinholeCamera, T_map_camera: np.ndarray) -> PanopticView: ...


@runtime_checkable
class HasPoints(Protocol):
    """What a map has besides, to be measured in 3D."""

    def snapshot(self) -> MapSnapshot: ...


class Mapper(Renderer, Protocol):
    """What is evaluated while it maps."""

    def integrate(self, frame: Frame) -> Any: ...


def evaluate(
    mapper: Renderer,
    frames: Iterable[Frame],
    truth_space: LabelSpace | None = None,
    min_pixels: int = MIN_PIXELS,
    true_points: LabeledPoints | None = None,
) -> dict[str, Any]:
    """Metrics of the map over the frames, ready for JSON. The map stays as it is, to the bit.

    Args:
        frames: at the resolution that is to be evaluated; their `labels` are the ground truth, where they have any.
        truth_space: classes of the frames' labels, if they differ from the map's; classes meet as `class_table` says.
        min_pixels: smaller true segments are void.
        true_points: labelled points of the true surface, e.g. a mesh's vertices; None = from the frames' depth.

    Returns:
        `frames` (evaluated), `obstructed_frames` (left out), `psnr`, `ssim`, `depth_l1_m`, `depth_coverage`,
        `protocol`; with labels all of `PanopticMetrics.compute` and `ObjectMetrics.compute`; of a mapper with a
        snapshot `floaters`, `floater_share`, and with labels all of `point_quality`.
    """
    truth_space = truth_space or mapper.label_space
    to_truth = class_table(mapper.label_space, truth_space)
    images = ImageMetrics()
    labels = PanopticMetrics(truth_space, min_pixels)
    objects = ObjectMetrics(truth_space, min_pixels)
    snapshot = mapper.snapshot() if isinstance(mapper, HasPoints) else None
    floaters = None if snapshot is None else FloaterCounter(snapshot.points)
    surface = SurfaceSampler()
    num_frames = num_labeled = num_obstructed = 0
    for frame in frames:
        if is_obstructed(frame.depth):
            num_obstructed += 1
            continue
        view = mapper.render(frame.camera, frame.T_map_camera)
        num_frames += 1
        images.update(view.color, view.depth, frame.color, frame.depth)
        if floaters is not None:
            floaters.update(frame)
        if frame.labels is not None:
            num_labeled += 1
            labels.update(to_truth[view.semantic], view.instance, frame.labels.semantic, frame.labels.instance)
            found = np.where(mapper.label_space.is_thing[view.semantic], view.instance, 0)
            objects.update(found, frame.labels.semantic, frame.labels.instance)
            if snapshot is not None and true_points is None:
                surface.update(frame)

    result: dict[str, Any] = {"frames": num_frames, "obstructed_frames": num_obstructed} | images.compute()
    result["protocol"] |= {
        "obstructed_frames": f"left out: less than {MIN_CLEAR_SHARE:.0%} of the pixels show something at least"
        f" {MIN_DISTANCE_M} m away (a covered lens, a camera inside a wall)"
    }
    if floaters is not None:
        _add(result, floater_metrics(floaters.compute()))
    if num_labeled:
        _add(result, labels.compute())
        _add(result, objects.compute())
    if snapshot is not None and (num_labeled or true_points is not None):
        map_points = LabeledPoints(snapshot.points, to_truth[snapshot.class_indices], snapshot.instance_ids)
        _add(result, point_quality(true_points or surface.compute(), map_points, truth_space))
    return result


def evaluate_over_time(
    mapper: Mapper,
    frames: Iterable[Frame],
    moments: Sequence[int],
    frames_at: Callable[[int], Iterable[Frame]],
    **options: Any,
) -> list[dict[str, Any]]:
    """Maps frames and evaluates the map at several moments: every metric as a curve over time.

    Args:
        frames: to be mapped, in order.
        moments: numbers of mapped frames after which the map is evaluated.
        frames_at: the frames to evaluate at a moment, e.g. of those held out the ones that came before it.
        options: further arguments of `evaluate`.

    Returns:
        What `evaluate` returns, with `mapped_frames`, for each moment that was reached.
    """
    curve = []
    for num_mapped, frame in enumerate(frames, start=1):
        mapper.integrate(frame)
        if num_mapped in moments:
            curve.append({"mapped_frames": num_mapped} | evaluate(mapper, frames_at(num_mapped), **options))
    return curve


def _add(result: dict[str, Any], more: dict[str, Any]) -> None:
    """Puts further metrics into the result, and their words into its protocol."""
    protocol = result["protocol"] | more.pop("protocol")
    result |= more | {"protocol": protocol}


def floater_metrics(floaters: Floaters) -> dict[str, Any]:
    """`floaters` (number), `floater_share` (percent) and `protocol`, ready for JSON."""
    return {
        "floaters": floaters.count,
        "floater_share": None if floaters.share is None else 100.0 * floaters.share,
        "protocol": {
            "floaters": f"Gaussians in front of the measured surface by max({MIN_GAP_M} m, {MIN_GAP_SHARE:.0%}) in"
            f" >= {MIN_FRAMES} evaluated frames and on it in none",
            "floater_share": "percent of the Gaussians that float or are on the measured surface in a frame",
        },
    }


def is_obstructed(depth: np.ndarray) -> bool:
    """Whether a depth image [H, W] (m) shows next to nothing but what is right before the lens."""
    measured = depth > 0
    return bool(measured.any() and (depth >= MIN_DISTANCE_M).mean() < MIN_CLEAR_SHARE)


def split_indices(num_frames: int, test_every: int = 8) -> tuple[list[int], list[int]]:
    """Frames for mapping and frames held out: every `test_every`-th, the first in the middle of its group.

    `test_every` = 0 holds nothing out.

    Raises:
        ValueError: `test_every` is negative or 1, which would leave nothing to map.
    """
    if test_every < 0 or test_every == 1:
        raise ValueError(f"test_every: expected 0 (hold nothing out) or >= 2, got {test_every}")
    test = list(range(test_every // 2, num_frames, test_every)) if test_every else []
    held_out = set(test)
    return [i for i in range(num_frames) if i not in held_out], test


def describe_indices(indices: Sequence[int]) -> str:
    """Ascending numbers in few words: "0-3, 5-7, 12-20 step 4"."""
    words: list[str] = []
    rest = list(indices)
    while rest:
        step = rest[1] - rest[0] if len(rest) > 1 else 1
        length = next((k for k in range(1, len(rest)) if rest[k] - rest[k - 1] != step), len(rest))
        if length < 3:
            words.append(str(rest.pop(0)))
            continue
        words.append(f"{rest[0]}-{rest[length - 1]}" + ("" if step == 1 else f" step {step}"))
        rest = rest[length:]
    return ", ".join(words)
