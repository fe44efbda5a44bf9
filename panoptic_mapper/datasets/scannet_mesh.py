"""ScanNet's annotated mesh: vertices, and the classes and instances that annotators gave them.

Vertices are in the frame of the recording's poses, metres, z up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_mapper.datasets.ply_vertices import read_ply_vertices
from panoptic_mapper.datasets.scannet_labels import LABEL_MAP_FILE, ScanNetClasses, find_label_map, read_label_map
from panoptic_mapper.point_metrics import LabeledPoints


def read_mesh_vertices(path: Path) -> np.ndarray:  # [V, 3] float64 m
    """The vertices of `<scene>_vh_clean_2.ply`, or of any PLY file with x, y, z."""
    vertices = read_ply_vertices(path)
    _require(path, vertices, ("x", "y", "z"))
    return np.stack([vertices[axis].astype(np.float64) for axis in "xyz"], axis=1)


def read_vertex_labels(path: Path) -> np.ndarray:  # [V] int32, 0 = unlabeled
    """NYU40 ids of the vertices of `<scene>_vh_clean_2.labels.ply`."""
    vertices = read_ply_vertices(path)
    _require(path, vertices, ("label",))
    return vertices["label"].astype(np.int32)


def read_vertex_instances(segments_file: Path, aggregation_file: Path) -> tuple[np.ndarray, dict[int, str]]:
    """Instance ids of the vertices, and the raw category of each instance.

    Args:
        segments_file: `<scene>_vh_clean_2.0.010000.segs.json`, the segment of each vertex.
        aggregation_file: `<scene>.aggregation.json`, the segments of each object.

    Returns:
        ids [V] int32, objectId + 1 as in the 2D instance images, 0 = none; raw category names by id. A segment that
        two objects claim belongs to the later one.
    """
    segments = np.asarray(_read_json(segments_file, "segIndices", "a list of segment numbers"))
    if segments.ndim != 1 or segments.dtype.kind not in "iu":
        raise ValueError(f"{segments_file}: segIndices: expected a list of whole numbers")
    groups = _read_json(aggregation_file, "segGroups", "a list of objects")
    owners: dict[int, int] = {}  # object of each segment
    names: dict[int, str] = {}
    for k, group in enumerate(groups):
        try:
            instance_id = int(group["objectId"]) + 1
            names[instance_id] = str(group["label"])
            owners |= dict.fromkeys((int(s) for s in group["segments"]), instance_id)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{aggregation_file}: segGroups[{k}]: expected objectId, label and segments ({error!r})"
            ) from error
    unique, inverse = np.unique(segments, return_inverse=True)
    return np.array([owners.get(int(s), 0) for s in unique], np.int32)[inverse], names


def read_labeled_vertices(scene: Path, labels: str | ScanNetClasses = "scannet20") -> LabeledPoints:
    """Vertices of a scene's annotated mesh with class indices and instances, to evaluate a map in 3D.

    Args:
        scene: the scene's folder, named as the scene.
        labels: a label set by name, or classes of one's own.

    Raises:
        ValueError: naming the file that is missing, damaged, or does not fit the others.
    """
    name = scene.resolve().name
    points = read_mesh_vertices(scene / f"{name}_vh_clean_2.ply")
    segments_file = scene / f"{name}_vh_clean_2.0.010000.segs.json"
    instances, names = read_vertex_instances(segments_file, scene / f"{name}.aggregation.json")
    if len(instances) != len(points):
        raise ValueError(f"{segments_file}: expected {len(points)} segIndices as vertices, got {len(instances)}")
    label_map = find_label_map(scene)
    if label_map is None:
        raise ValueError(f"{scene}: no {LABEL_MAP_FILE} here or in the three folders above")
    categories = read_label_map(label_map)
    classes = ScanNetClasses.of_set(labels, categories) if isinstance(labels, str) else labels
    raw_ids = {c.name: c.id for c in categories}
    index_of_instance = np.zeros(int(instances.max(initial=0)) + 1, np.int32)
    for instance_id, category in names.items():
        if instance_id < len(index_of_instance) and category in raw_ids:
            index_of_instance[instance_id] = classes.index_of_raw[raw_ids[category]]
    semantic = index_of_instance[instances]
    return LabeledPoints(points, semantic, np.where(classes.label_space.is_thing[semantic], instances, 0))


def _read_json(file: Path, key: str, what: str) -> Any:
    try:
        value = json.loads(file.read_text())[key]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: expected JSON with '{key}', {what} ({error!r})") from error
    if not isinstance(value, list):
        raise ValueError(f"{file}: {key}: expected {what}, got {type(value).__name__}")
    return value


def _require(path: Path, vertices: np.ndarray, properties: tuple[str, ...]) -> None:
    missing = [name for name in properties if name not in (vertices.dtype.names or ())]
    if missing:
        found = ", ".join(vertices.dtype.names or ())
        raise ValueError(f"{path}: expected the vertex properties {', '.join(properties)}, got {found}")
