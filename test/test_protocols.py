"""The published protocol on tiny scenes that the test writes in ScanNet's formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scannet_files import LABEL_MAP, depth_bytes, jpeg, sens_frame, sens_header, write_mesh, write_zip
from typer.testing import CliRunner

from panoptic_mapper import cli
from panoptic_mapper.datasets.synthetic import SyntheticConfig, SyntheticRoom
from panoptic_mapper.protocols import PROTOCOLS, SCANNET_V2, find_scenes, get_protocol

SCENE = "scene0088_00"
RAW_IDS = {"wall": 1, "floor": 3, "chair": 2, "dining table": 4, "door": 5}  # the others become a category of no class


def write_scene(root: Path, scene: str = SCENE, every: int = 10, count: int = 8) -> Path:
    """Frames of the synthetic room; those that the protocol skips are copies of one that nobody could read."""
    path = root / "scans" / scene
    path.mkdir(parents=True)
    room = SyntheticRoom(SyntheticConfig(width=64, height=48, num_frames=60))
    raw_of_index = np.array([0] + [RAW_IDS.get(name, 40) for name in room.label_space.names[1:]], np.uint16)
    frames, labels, instances = [], {}, {}
    unreadable = sens_frame(np.eye(4), b"skipped", b"skipped")
    for k in range(count):
        frame = room[k]
        depth_mm = np.round(frame.depth * 1000).astype(np.uint16)
        stamp_us = (k * every + 1) * 33_000
        frames.append(sens_frame(frame.T_map_camera, jpeg(frame.color), depth_bytes(depth_mm), stamp_us))
        frames += [unreadable] * (every - 1)
        labels[k * every] = raw_of_index[frame.labels.semantic]
        instances[k * every] = frame.labels.instance.astype(np.uint8)
    K = np.eye(4)
    K[:3, :3] = room[0].camera.matrix
    header = sens_header(len(frames), K_color=K, K_depth=K, color_size=(64, 48), depth_size=(64, 48))
    (path / f"{scene}.sens").write_bytes(header + b"".join(frames))
    write_zip(path / f"{scene}_2d-label-filt.zip", "label-filt", labels)
    write_zip(path / f"{scene}_2d-instance-filt.zip", "instance-filt", instances)
    return path


def test_the_protocol_is_that_of_the_four_scenes():
    assert SCANNET_V2.scenes == ("scene0087_02", "scene0088_00", "scene0420_01", "scene0628_02")
    for scene in SCANNET_V2.scenes:
        classes, raw_ids = SCANNET_V2.semantic_classes(scene)
        assert {"wall", "floor", "chair", "table"} <= {c.name for c in classes}
        used = [raw for ids in raw_ids.values() for raw in ids]
        assert len(used) == len(set(used))
    assert get_protocol("scannet-v2") is PROTOCOLS["scannet-v2"]
    with pytest.raises(ValueError, match="expected one of scannet-v2, got 'scannet'"):
        get_protocol("scannet")


def test_scenes_are_found_and_missing_ones_are_explained(tmp_path):
    complete = tmp_path / "data" / "scans" / "scene0087_02"
    partial = tmp_path / "scene0420_01"
    for path in (complete, partial):
        path.mkdir(parents=True)
        (path / f"{path.name}.sens").touch()
    for what in ("label", "instance"):
        (complete / f"scene0087_02_2d-{what}-filt.zip").touch()
    search = find_scenes(SCANNET_V2, tmp_path)
    assert search.found == {"scene0087_02": complete}
    assert list(search.missing) == ["scene0088_00", "scene0420_01", "scene0628_02"]
    assert search.missing["scene0628_02"] == "no folder scene0628_02"
    lacking = "lacks scene0420_01_2d-label-filt.zip, scene0420_01_2d-instance-filt.zip"
    assert search.missing["scene0420_01"] == f"{partial} {lacking}"
    assert find_scenes(SCANNET_V2, complete).found == {"scene0087_02": complete}
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        find_scenes(SCANNET_V2, tmp_path / "nowhere")


def run(*words: str):
    fast = ["--set", "mapper.optimizer.steps_per_keyframe=2", "--set", "device=cpu"]
    return CliRunner().invoke(cli.app, ["eval", "--protocol", "scannet-v2", *words, *fast], catch_exceptions=False)


def test_eval_runs_the_scenes_that_are_there(tmp_path):
    scene = write_scene(tmp_path)
    (tmp_path / "scannetv2-labels.combined.tsv").write_text(LABEL_MAP)
    # One vertex on each of three surfaces is too few to be measured; that these are asked at all is what counts.
    groups = [{"id": 0, "objectId": 0, "segments": [1], "label": "wall"}]
    write_mesh(scene, np.eye(3), np.ones(3), [1, 1, 1], groups)
    result = json.loads(run(str(tmp_path), "--json").stdout)
    assert list(result["scenes"]) == [SCENE]
    assert sorted(result["missing"]) == ["scene0087_02", "scene0420_01", "scene0628_02"]
    metrics = result["scenes"][SCENE]
    # Frames that the protocol skips cannot even be decoded.
    assert metrics["test"]["frame_indices"] == [40]
    assert metrics["train"]["frame_indices"] == [0, 10, 20, 30, 50, 60, 70]
    assert metrics["classes"] == ["wall", "floor", "door", "whiteboard", "chair", "table"]
    assert set(metrics["train"]["per_class"]) <= set(metrics["classes"])
    assert metrics["train"]["miou"] > 20
    assert metrics["train"]["prq_points"] == 3
    assert result["mean"]["test"]["pq_pr_0.1"] == metrics["test"]["pq_pr_0.1"]
    words = result["protocol"]
    assert words["scenes"] == f"{SCENE} (1 of 4)"
    assert words["frames"] == "every 10th; of these, every 8th is held out (test)"
    assert words["2d_labels"] == "segmenter dataset, noise clean"
    assert {"pq", "pq_pr_0.1"} <= set(words)


def test_eval_prints_the_protocol_and_what_is_missing(tmp_path, monkeypatch):
    write_scene(tmp_path, count=5)
    monkeypatch.setattr(cli.console, "width", 200)
    result = run(str(tmp_path))
    assert result.exit_code == 0
    assert result.stdout == ""
    text = result.stderr
    for words in ("scene0088_00", "pq_pr_0.1", "mean", "caveats:", "missing scene0087_02: no folder", "scan-net.org"):
        assert words in text


def test_without_any_scene_it_says_what_to_get(tmp_path):
    with pytest.raises(
        ValueError, match=r"none of the scenes of scannet-v2 is here \(scene0087_02: no folder .*scan-net"
    ):
        run(str(tmp_path))
    with pytest.raises(ValueError, match="takes one folder, that of the scenes; got also 'synthetic'"):
        run(str(tmp_path), "synthetic")
    with pytest.raises(ValueError, match="expected a saved map and a DATASET, or --protocol"):
        CliRunner().invoke(cli.app, ["eval", str(tmp_path)], catch_exceptions=False)
