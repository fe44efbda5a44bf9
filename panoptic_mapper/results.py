"""What a finished map is written to: the map, objects, point clouds, report and picture in one folder."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from panoptic_mapper import map_io, ply
from panoptic_mapper.config import config_from_dict, to_dict
from panoptic_mapper.datasets.base import Dataset
from panoptic_mapper.evaluation import evaluate
from panoptic_mapper.frame import Frame, checked_pose
from panoptic_mapper.gaussian_map import HARMONICS
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.mapper import MapperConfig, PanopticMapper
from panoptic_mapper.segmenters.none import NoSegmenter
from panoptic_mapper.snapshot import MapObject

MAP_FILE, OBJECTS_FILE, REPORT_FILE, OVERVIEW_FILE = "map.pmap", "objects.json", "report.json", "overview.png"
POINTS_FILE, GAUSSIANS_FILE = "points.ply", "gaussians.ply"
OVERVIEW_ROWS = 5


def writable_folder(path: Path) -> Path:
    """Makes the folder and proves that it can be written to, before the long work.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to the folder {path}: {error}") from error
    return path


def save_mapper(path: Path, mapper: PanopticMapper) -> None:
    """Writes the whole map to one file, with its configuration; `load_mapper` reads it."""
    tensors, meta = mapper.export_state()
    map_io.save_map(path, tensors, meta | {"config": to_dict(mapper.config)})


def load_mapper(path: Path, device: str = "cpu") -> PanopticMapper:
    """A mapper that holds a saved map, to render, query and evaluate; it has no 2D model.

    Raises:
        ValueError: the file is not a readable map.
    """
    tensors, meta = map_io.load_map(path)
    try:
        config = config_from_dict(MapperConfig, meta["config"], f"{path}: configuration")
        label_space = LabelSpace.from_dict(meta["label_space"])
    except KeyError as error:
        raise ValueError(f"{path}: the saved map is incomplete: {error} is missing") from error
    mapper = PanopticMapper(config, NoSegmenter(label_space), device)
    mapper.restore_state(tensors, meta)
    return mapper


def evaluation_frames(dataset: Dataset, indices: Iterable[int], mapper: PanopticMapper) -> Iterable[Frame]:
    """Frames of a sequence at the mapper's resolution, which is the one that is evaluated."""
    return (mapper.at_mapping_size(dataset[index]) for index in indices)


def make_report(
    mapper: PanopticMapper, dataset: Dataset, splits: dict[str, list[int]], wall_s: float, **about: Any
) -> dict[str, Any]:
    """The report of a run, ready for JSON: counts, speed, memory, and the metrics of each split of the frames.

    Args:
        splits: frame indices by the split's name, e.g. {"train": [...], "test": [...]}.
        wall_s: how long mapping took, s.
        about: further entries, e.g. the command's arguments.
    """
    stats = mapper.stats()
    report: dict[str, Any] = about | {
        "sequence": dataset.name,
        "frames": stats.num_frames,
        "keyframes": stats.num_keyframes,
        "gaussians": stats.num_gaussians,
        "objects": len(mapper.objects()),
        "fps": stats.num_frames / max(wall_s, 1e-9),
        "wall_s": wall_s,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "map_mb": stats.map_bytes / 2**20,
        "device": str(mapper.device),
        "stage_ms": stats.stage_ms,
        "losses": stats.losses,
        "config": to_dict(mapper.config),
    }
    for name, indices in splits.items():
        if indices:
            metrics = evaluate(mapper, evaluation_frames(dataset, indices, mapper), dataset.label_space)
            report["protocol"] = metrics.pop("protocol")
            report[name] = metrics | {"frame_indices": list(indices)}
    return report


def write_results(
    out: Path, mapper: PanopticMapper, dataset: Dataset, shown: list[int], report: dict[str, Any]
) -> None:
    """Writes every output into the folder `out`.

    Args:
        shown: indices of frames of the sequence, of which the overview shows a few.
        report: from `make_report`.

    Raises:
        ValueError: a file cannot be written.
    """
    from panoptic_mapper.overview import save_overview  # imports matplotlib, which takes a second

    writable_folder(out)
    save_mapper(out / MAP_FILE, mapper)
    write_json(out / OBJECTS_FILE, [object_as_dict(o, mapper.label_space) for o in mapper.objects()])
    write_json(out / REPORT_FILE, report)
    snapshot = mapper.snapshot()
    ply.save_labeled_ply(out / POINTS_FILE, snapshot)
    columns = {name: mapper.map.gaussians[name].cpu().numpy() for name in mapper.map.gaussians.widths}
    columns["opacity_logits"] = columns["opacity_logits"][:, 0]
    names = ("means", "quats", "log_scales", "opacity_logits", "colors", HARMONICS)
    ply.save_gaussian_ply(out / GAUSSIANS_FILE, **{name: columns[name] for name in names if name in columns})
    picked = [shown[i] for i in np.linspace(0, len(shown) - 1, min(OVERVIEW_ROWS, len(shown))).round().astype(int)]
    frames = list(evaluation_frames(dataset, picked, mapper))
    rows = [(frame, mapper.render(frame.camera, frame.T_map_camera)) for frame in frames]
    trajectory = np.array([keyframe.T_map_camera[:3, 3] for keyframe in mapper.keyframes.all])
    save_overview(out / OVERVIEW_FILE, rows, snapshot, trajectory, mapper.up, title=dataset.name)


def object_as_dict(object: MapObject, label_space: LabelSpace) -> dict[str, Any]:
    """An object for JSON: public class id, lengths in m, map frame, quaternion wxyz, stamps in ns."""
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(object).items()}
    plain["box"] = {key: value.tolist() for key, value in vars(object.box).items()}
    return plain | {"class_id": int(label_space.ids[plain.pop("class_index")])}


def write_json(path: Path, value: Any) -> None:
    """Raises ValueError naming the file when it cannot be written."""
    try:
        path.write_text(json.dumps(value, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error}") from error


def write_view(out: Path, mapper: PanopticMapper, pose_file: Path | None, size: tuple[int, int] | None) -> None:
    """Renders the map and writes color.png, depth.png (uint16 mm), semantic.png and instance.png (uint16 ids).

    Args:
        pose_file: text file with a 4x4 camera-to-map matrix; None = the pose of the last keyframe.
        size: width and height, px; None = those of the last keyframe, whose field of view is used in any case.

    Raises:
        ValueError: the map is empty, the pose is unreadable or not rigid, or `out` cannot be written.
    """
    if len(mapper.keyframes) == 0:
        raise ValueError("the map is empty: there is nothing to render")
    last = mapper.keyframes.all[-1]
    try:
        pose = last.T_map_camera if pose_file is None else checked_pose(np.loadtxt(pose_file))
    except (OSError, ValueError) as error:
        raise ValueError(f"{pose_file}: not a readable pose: {error}") from error
    view = mapper.render(last.camera if size is None else last.camera.resized(*size), pose)
    images = {
        "color": view.color[..., ::-1],
        "depth": np.clip(view.depth * 1000, 0, 65535).astype(np.uint16),
        "semantic": mapper.label_space.ids[view.semantic].astype(np.uint16),
        "instance": view.instance.astype(np.uint16),
    }
    writable_folder(out)
    for name, image in images.items():
        if not cv2.imwrite(str(out / f"{name}.png"), image):
            raise ValueError(f"cannot write {out / name}.png")
