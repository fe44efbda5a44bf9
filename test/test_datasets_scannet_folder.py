"""The ScanNet-style reader against folders that the tests write."""

import json
import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from panoptic_mapper.datasets.scannet_folder import ScanNetFolder

CLASSES = [
    {"id": 1, "name": "wall", "isthing": False},
    {"id": 5, "name": "chair", "isthing": True},
    {"id": 42, "name": "plant", "isthing": True},
]


def pose(x: float) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    T[:3, 3] = (x, 2, 3)
    return T


def write_folder(path: Path, numbers=(0, 1, 2), color_size=(8, 6), depth_size=(8, 6), labels=True) -> Path:
    """A sequence of flat images: frame n is coloured (10n, 20, 30) RGB and n + 1 m deep."""
    for sub in ("color", "depth", "pose", "intrinsic", *(("semantic", "instance") if labels else ())):
        (path / sub).mkdir(parents=True)
    K = np.eye(4)
    K[0, 0], K[1, 1], K[0, 2], K[1, 2] = 7, 7.5, 3.5, 2.5
    np.savetxt(path / "intrinsic" / "intrinsic_depth.txt", K)
    np.savetxt(path / "intrinsic" / "intrinsic_color.txt", K)
    for n in numbers:
        color = np.full((color_size[1], color_size[0], 3), (30, 20, 10 * n), np.uint8)  # BGR for OpenCV
        cv2.imwrite(str(path / "color" / f"{n}.png"), color)
        depth = np.full((depth_size[1], depth_size[0]), 1000 * (n + 1), np.uint16)
        depth[0, 0], depth[0, 1] = 0, 65535
        cv2.imwrite(str(path / "depth" / f"{n}.png"), depth)
        np.savetxt(path / "pose" / f"{n}.txt", pose(n))
        if labels:
            semantic = np.full((color_size[1], color_size[0]), 1, np.uint16)
            semantic[:, -2:] = 5
            semantic[0, :] = 77  # a class that labels.json does not know
            instance = np.full_like(semantic, 300)
            cv2.imwrite(str(path / "semantic" / f"{n}.png"), semantic)
            cv2.imwrite(str(path / "instance" / f"{n}.png"), instance)
    if labels:
        (path / "labels.json").write_text(json.dumps({"classes": CLASSES}))
    return path


def test_reads_colour_depth_pose_and_intrinsics(tmp_path):
    dataset = ScanNetFolder(write_folder(tmp_path / "seq"), fps=10)
    assert dataset.name == "seq"
    assert len(dataset) == 3
    frame = dataset[2]
    assert frame.stamp_ns == 200_000_000
    np.testing.assert_array_equal(frame.color[3, 3], (20, 20, 30))
    assert frame.depth[3, 3] == pytest.approx(3.0)
    assert frame.depth[0, 0] == 0
    assert frame.depth[0, 1] == 0
    np.testing.assert_allclose(frame.T_map_camera, pose(2), atol=1e-12)
    np.testing.assert_allclose(frame.camera.matrix, [[7, 0, 3.5], [0, 7.5, 2.5], [0, 0, 1]])


def test_translates_class_ids_and_keeps_instances_of_things_only(tmp_path):
    frame = ScanNetFolder(write_folder(tmp_path))[0]
    semantic = np.full((6, 8), 1)
    semantic[:, -2:] = 2
    semantic[0] = 0  # the unknown id 77
    np.testing.assert_array_equal(frame.labels.semantic, semantic)
    np.testing.assert_array_equal(frame.labels.instance, np.where(semantic == 2, 300, 0))


def test_without_labels(tmp_path):
    dataset = ScanNetFolder(write_folder(tmp_path, labels=False))
    assert dataset.label_space is None
    assert dataset[0].labels is None


def test_colour_and_labels_take_the_size_of_the_depth(tmp_path):
    frame = ScanNetFolder(write_folder(tmp_path, color_size=(16, 12), depth_size=(8, 6)))[1]
    assert frame.color.shape == (6, 8, 3)
    np.testing.assert_array_equal(frame.color[5, 7], (10, 20, 30))
    assert frame.labels.semantic.shape == (6, 8)
    assert frame.labels.semantic[3, 7] == 2
    assert (frame.camera.width, frame.camera.height, frame.camera.fx) == (8, 6, 7)


def test_gaps_in_the_numbers_sort_by_number(tmp_path):
    dataset = ScanNetFolder(write_folder(tmp_path, numbers=(10, 2, 7)))
    assert [round(frame.T_map_camera[0, 3]) for frame in dataset] == [2, 7, 10]


@pytest.mark.parametrize("lost", ["-inf", "nan"])
def test_lost_tracking_is_left_out_and_logged(tmp_path, caplog, lost):
    write_folder(tmp_path)
    (tmp_path / "pose" / "1.txt").write_text("\n".join([f"{lost} {lost} {lost} {lost}"] * 4))
    with caplog.at_level(logging.WARNING):
        dataset = ScanNetFolder(tmp_path, fps=1)
    assert "1 of 3 frames" in caplog.text
    assert [dataset[i].stamp_ns for i in range(len(dataset))] == [0, 2_000_000_000]


@pytest.mark.parametrize("file", ["pose/1.txt", "depth/1.png", "intrinsic/intrinsic_depth.txt", "labels.json"])
@pytest.mark.parametrize("how", ["missing", "broken"])
def test_missing_and_broken_files_are_named(tmp_path, file, how):
    write_folder(tmp_path)
    if how == "missing":
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(b"1 2 banana")
    with pytest.raises(ValueError, match=Path(file).name):
        ScanNetFolder(tmp_path)[1]


@pytest.mark.parametrize("file", ["color/1.png", "semantic/1.png", "instance/1.png"])
def test_broken_images_are_named_when_read(tmp_path, file):
    write_folder(tmp_path)
    (tmp_path / file).write_bytes(b"not an image")
    dataset = ScanNetFolder(tmp_path)
    assert dataset[0].depth.shape == (6, 8)
    with pytest.raises(ValueError, match=f"{file}: cannot be decoded"):
        dataset[1]


def test_depth_of_eight_bits_is_refused(tmp_path):
    write_folder(tmp_path)
    cv2.imwrite(str(tmp_path / "depth" / "0.png"), np.zeros((6, 8), np.uint8))
    with pytest.raises(ValueError, match=r"depth/0.png: expected one channel of uint16 depth, got uint8"):
        ScanNetFolder(tmp_path)[0]


def test_a_pose_that_is_not_rigid_is_refused(tmp_path):
    write_folder(tmp_path)
    np.savetxt(tmp_path / "pose" / "2.txt", np.diag([2.0, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"pose/2.txt: pose: not a rigid transform"):
        ScanNetFolder(tmp_path)


def test_intrinsics_of_another_resolution_are_refused(tmp_path):
    write_folder(tmp_path)
    np.savetxt(tmp_path / "intrinsic" / "intrinsic_depth.txt", np.diag([577.0, 577, 1, 1]) + np.eye(4, k=2) * 320)
    with pytest.raises(ValueError, match=r"intrinsic_depth.txt: intrinsics: principal point"):
        ScanNetFolder(tmp_path)[0]


def test_empty_sequences_are_refused(tmp_path):
    with pytest.raises(ValueError, match="color: no images named by number"):
        ScanNetFolder(write_folder(tmp_path / "a", numbers=()))
    with pytest.raises(ValueError, match="no such folder"):
        ScanNetFolder(tmp_path / "missing")


def test_index_out_of_range(tmp_path):
    dataset = ScanNetFolder(write_folder(tmp_path))
    with pytest.raises(IndexError):
        dataset[3]


@pytest.mark.skipif(
    "PANOPTIC_MAPPER_DATA" not in os.environ, reason="PANOPTIC_MAPPER_DATA names no folder of sequences"
)
def test_recorded_sequences_open():
    sequences = [p for p in sorted(Path(os.environ["PANOPTIC_MAPPER_DATA"]).iterdir()) if (p / "color").is_dir()]
    assert sequences
    for path in sequences:
        dataset = ScanNetFolder(path)
        frame = dataset[0]
        assert np.count_nonzero(frame.depth) > frame.depth.size // 4
        if dataset.label_space is not None:
            assert len(np.unique(frame.labels.semantic)) > 2
