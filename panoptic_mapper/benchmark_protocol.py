"""Runs a published protocol on the scenes that are there: mapping, evaluation, and one table."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_mapper.build import BuildConfig, build_map
from panoptic_mapper.datasets.scannet_labels import ScanNetClasses, find_label_map
from panoptic_mapper.datasets.scannet_mesh import read_labeled_vertices
from panoptic_mapper.datasets.scannet_scene import ScanNetScene
from panoptic_mapper.evaluation import evaluate
from panoptic_mapper.point_metrics import LabeledPoints
from panoptic_mapper.protocols import Protocol, SceneSearch, find_scenes
from panoptic_mapper.results import evaluation_frames

logger = logging.getLogger(__name__)

SceneProgress = Callable[[str, int, int], None]  # the scene, its mapped frames, and of how many
SPLITS = ("train", "test")


def protocol_config(protocol: Protocol, config: BuildConfig) -> BuildConfig:
    """The configuration with the protocol's choice of frames."""
    return replace(config, every=protocol.every, test_every=protocol.test_every)


def run_protocol(
    protocol: Protocol, root: Path, config: BuildConfig, progress: SceneProgress | None = None
) -> dict[str, Any]:
    """Maps and evaluates each scene of the protocol that is under `root`.

    Args:
        config: how maps are made; `every` and `test_every` are the protocol's.

    Returns:
        Ready for JSON: `protocol` (words by key), `scenes` (metrics by scene and split, "train" for the mapped frames
        and "test" for those held out), `mean` over the scenes by split, `missing` (what is not there, by scene).

    Raises:
        ValueError: no scene is there (what is missing and where to get it is said), or one is damaged.
    """
    search = find_scenes(protocol, root)
    if not search.found:
        lines = "; ".join(f"{scene}: {what}" for scene, what in search.missing.items())
        raise ValueError(f"{root}: none of the scenes of {protocol.name} is here ({lines}). {protocol.where}")
    config = protocol_config(protocol, config)
    scenes = {scene: _run_scene(protocol, scene, path, config, progress) for scene, path in search.found.items()}
    return {
        "protocol": describe(protocol, config, search) | _metric_words(scenes),
        "scenes": scenes,
        "mean": {split: _mean([s[split] for s in scenes.values() if split in s]) for split in SPLITS},
        "missing": search.missing,
    }


def describe(protocol: Protocol, config: BuildConfig, search: SceneSearch) -> dict[str, str]:
    """The protocol in words, by key: all that a number needs beside it."""
    return {
        "name": protocol.name,
        "source": protocol.source,
        "scenes": f"{', '.join(search.found)} ({len(search.found)} of {len(protocol.scenes)})",
        "frames": f"every {config.every}th; of these, every {config.test_every}th is held out (test)",
        "2d_labels": f"segmenter {config.segmenter.name}"
        + (f", noise {config.segmenter.noise}" if config.segmenter.name == "dataset" else ""),
        "setting": config.mode,
        "caveats": "; ".join(protocol.caveats),
    }


def _run_scene(
    protocol: Protocol, scene: str, path: Path, config: BuildConfig, progress: SceneProgress | None
) -> dict[str, Any]:
    classes = ScanNetClasses.from_raw_ids(*protocol.semantic_classes(scene))
    sequence = ScanNetScene(path, labels=classes)
    report = None if progress is None else (lambda done, total, words: progress(scene, done, total))
    built = build_map(sequence, config, report)
    true_points = _vertices(scene, path, classes)
    result: dict[str, Any] = {"wall_s": built.wall_s, "classes": list(classes.label_space.names[1:])}
    for split, indices in built.splits.items():
        if indices:
            frames = evaluation_frames(sequence, indices, built.mapper)
            metrics = evaluate(built.mapper, frames, classes.label_space, true_points=true_points)
            result[split] = metrics | {"frame_indices": indices}
    return result


def _vertices(scene: str, path: Path, classes: ScanNetClasses) -> LabeledPoints | None:
    """The annotated mesh for the metrics in 3D, where it and the label map are there."""
    files = ("_vh_clean_2.ply", "_vh_clean_2.0.010000.segs.json", ".aggregation.json")
    if any(not (path / f"{scene}{file}").is_file() for file in files) or find_label_map(path) is None:
        logger.warning("%s: no annotated mesh or label map: 3D metrics are of points from the frames' depth", path)
        return None
    return read_labeled_vertices(path, classes)


def _metric_words(scenes: dict[str, Any]) -> dict[str, str]:
    """The protocol of each metric, which all scenes share."""
    words: dict[str, str] = {}
    for scene in scenes.values():
        for split in SPLITS:
            words |= scene.get(split, {}).pop("protocol", {})
    return words


def _mean(results: list[dict[str, Any]]) -> dict[str, float]:
    """The mean over scenes of every number that all of them have."""
    if not results:
        return {}
    is_number = [{k for k, v in r.items() if isinstance(v, (int, float))} for r in results]
    return {k: float(np.mean([r[k] for r in results])) for k in sorted(set.intersection(*is_number))}
