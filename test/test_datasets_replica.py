"""The Replica reader against folders that the tests write in NICE-SLAM's and in vMAP's layout."""

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from panoptic_mapper.datasets import open_dataset
from panoptic_mapper.datasets.replica import ReplicaSequence

CAMERA = {"camera": {"w": 12, "h": 8, "fx": 6.0, "fy": 6.0, "cx": 5.5, "cy": 3.5, "scale": 6553.5}}
INFO = {
    "classes": [{"id": 20, "name": "chair"}, {"id": 93, "name": "wall"}, {"id": 40, "name": "floor"}],
    "id_to_label": [20, 93, -1, 20, 40],
    "objects": [{"id": 0, "class_id": 20, "class_name": "chair"}],
}


def pose_rows(count: int) -> str:
    rows = []
    for n in range(count):
        T = np.eye(4)
        T[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
        T[0, 3] = n
        rows.append(" ".join(f"{v:.18e}" for v in T.ravel()))
    return "\n".join(rows) + "\n"


def write_nice_slam(root: Path, count=3) -> Path:
    path = root / "room0"
    (path / "results").mkdir(parents=True)
    depth = np.full((8, 12), 13107, np.uint16)
    depth[0, 0] = 0
    for n in range(count):
        cv2.imwrite(str(path / "results" / f"frame{n:06d}.jpg"), np.full((8, 12, 3), 40 * n + 40, np.uint8))
        cv2.imwrite(str(path / "results" / f"depth{n:06d}.png"), depth)
    (path / "traj.txt").write_text(pose_rows(count))
    (root / "cam_params.json").write_text(json.dumps(CAMERA))
    return path


def write_labels(path: Path, count=3) -> None:
    (path / "semantic_instance").mkdir()
    ids = np.zeros((8, 12), np.uint16)  # object 0, a chair
    ids[:, 3:6], ids[:, 6:8], ids[:, 8:10], ids[:, 10:] = 1, 2, 3, 999
    for n in range(count):
        cv2.imwrite(str(path / "semantic_instance" / f"semantic_instance_{n}.png"), ids)
        cv2.imwrite(str(path / "semantic_instance" / f"vis_sem_instance_{n}.png"), np.zeros((8, 12, 3), np.uint8))
    (path / "info_semantic.json").write_text(json.dumps(INFO))


def test_nice_slam_layout(tmp_path):
    dataset = open_dataset(write_nice_slam(tmp_path))
    assert isinstance(dataset, ReplicaSequence)
    assert (dataset.name, len(dataset), dataset.label_space) == ("room0", 3, None)
    frame = dataset[2]
    assert frame.stamp_ns == round(2e9 / 30)
    np.testing.assert_allclose(frame.color, 120, atol=3)
    assert frame.depth[0, 0] == 0
    assert frame.depth[4, 4] == pytest.approx(2.0)
    np.testing.assert_allclose(frame.T_map_camera[:3], [[0, -1, 0, 2], [1, 0, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_allclose(frame.camera.matrix, [[6, 0, 5.5], [0, 6, 3.5], [0, 0, 1]])


def test_vmap_layout(tmp_path):
    path = tmp_path / "00"
    for sub in ("rgb", "depth"):
        (path / sub).mkdir(parents=True)
    for n in range(12):
        cv2.imwrite(str(path / "rgb" / f"rgb_{n}.png"), np.full((8, 12, 3), (1, 2, n), np.uint8))
        cv2.imwrite(str(path / "depth" / f"depth_{n}.png"), np.full((8, 12), 1000 + n, np.uint16))
    (path / "traj_w_c.txt").write_text(pose_rows(12))
    dataset = open_dataset(path)
    assert isinstance(dataset, ReplicaSequence)
    frame = dataset[10]  # by number: 10 comes after 9
    np.testing.assert_array_equal(frame.color[0, 0], (10, 2, 1))
    assert frame.depth[0, 0] == pytest.approx(1.010)
    assert frame.T_map_camera[0, 3] == 10
    np.testing.assert_allclose(frame.camera.matrix, [[6, 0, 5.5], [0, 6, 3.5], [0, 0, 1]])


def test_instance_maps(tmp_path):
    path = write_nice_slam(tmp_path)
    write_labels(path)
    dataset = ReplicaSequence(path)
    space = dataset.label_space
    assert [(c.id, c.name, c.is_thing) for c in space.classes[1:]] == [
        (20, "chair", True),
        (93, "wall", False),
        (40, "floor", False),
    ]
    labels = dataset[0].labels
    np.testing.assert_array_equal(space.ids[labels.semantic[0]], [20] * 3 + [93] * 3 + [0] * 2 + [20] * 2 + [0] * 2)
    np.testing.assert_array_equal(labels.instance[0], [1] * 3 + [0] * 5 + [4] * 2 + [0] * 2)


def test_info_is_found_where_replica_has_it(tmp_path):
    path = write_nice_slam(tmp_path)
    write_labels(path)
    (path / "info_semantic.json").unlink()
    with pytest.raises(ValueError, match=r"info_semantic.json: no such file, nor .* <scene>/habitat/"):
        ReplicaSequence(path)
    (tmp_path / "habitat").mkdir()
    (tmp_path / "habitat" / "info_semantic.json").write_text(json.dumps(INFO))
    assert len(ReplicaSequence(path).label_space) == 4


def test_incomplete_frames_are_left_out_and_counted(tmp_path, caplog):
    path = write_nice_slam(tmp_path, count=4)
    (path / "results" / "depth000001.png").unlink()
    (path / "traj.txt").write_text(pose_rows(3))
    with caplog.at_level(logging.WARNING):
        dataset = ReplicaSequence(path)
    assert "2 of 4 frames lack colour, depth or pose" in caplog.text
    assert [frame.T_map_camera[0, 3] for frame in dataset] == [0, 2]


def test_damaged_files_are_named(tmp_path):
    path = write_nice_slam(tmp_path)
    write_labels(path)
    dataset = ReplicaSequence(path)
    (path / "semantic_instance" / "semantic_instance_0.png").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"semantic_instance_0.png: cannot be decoded"):
        dataset[0]
    (path / "semantic_instance" / "semantic_instance_1.png").unlink()
    with pytest.raises(ValueError, match=r"semantic_instance_1.png: no such file"):
        ReplicaSequence(path)[1]
    cv2.imwrite(str(path / "results" / "depth000002.png"), np.ones((4, 6), np.uint16))
    with pytest.raises(ValueError, match=r"depth000002.png: expected 12x8 as cam_params.json says, got 6x4"):
        dataset[2]
    (path / "info_semantic.json").write_text(json.dumps({"classes": [{"id": 1}], "id_to_label": []}))
    with pytest.raises(ValueError, match=r"info_semantic.json: expected classes with id and name"):
        ReplicaSequence(path)
    (path / "info_semantic.json").write_text(json.dumps({"id_to_label": 5}))
    with pytest.raises(ValueError, match=r"info_semantic.json: id_to_label: expected a list, got int"):
        ReplicaSequence(path)
    (tmp_path / "cam_params.json").write_text(json.dumps({"camera": {"w": 12}}))
    with pytest.raises(ValueError, match=r"cam_params.json: camera: expected fx, fy, cx, cy, w, h and scale"):
        ReplicaSequence(path)
    (tmp_path / "cam_params.json").unlink()
    with pytest.raises(ValueError, match=r"cam_params.json: no such file, nor one folder above"):
        ReplicaSequence(path)
    (tmp_path / "cam_params.json").write_text(json.dumps(CAMERA))
    (path / "traj.txt").write_text("1 0 0\n")
    with pytest.raises(ValueError, match=r"traj.txt: line 1: expected 16 words"):
        ReplicaSequence(path)
