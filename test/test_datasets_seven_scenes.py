"""The 7-Scenes reader against a folder that the tests write as the dataset's page describes it."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from panoptic_mapper.datasets import open_dataset
from panoptic_mapper.datasets.seven_scenes import COLOR_CAMERA, DEPTH_CAMERA, SevenScenesSequence


def write_sequence(path: Path, numbers=(0, 1), depth_mm=None) -> Path:
    path.mkdir(parents=True)
    depth = np.full((480, 640), 2000, np.uint16) if depth_mm is None else depth_mm
    for n in numbers:
        stem = str(path / f"frame-{n:06d}")
        cv2.imwrite(stem + ".color.png", np.full((480, 640, 3), (1, 2, 3 + n), np.uint8))
        cv2.imwrite(stem + ".depth.png", depth)
        T = np.eye(4)
        T[0, 3] = n
        rows = ["\t ".join(f"{v: .7e}" for v in row) + "\t " for row in T]
        Path(stem + ".pose.txt").write_text("\n".join(rows) + "\n")
    return path


def test_reads_frames_as_they_are_when_asked_to(tmp_path):
    depth = np.full((480, 640), 2000, np.uint16)
    depth[0, 0], depth[0, 1] = 0, 65535
    dataset = SevenScenesSequence(
        write_sequence(tmp_path / "chess" / "seq-03", (0, 5), depth), is_registered=True, fps=10
    )
    assert (dataset.name, len(dataset), dataset.label_space) == ("chess-seq-03", 2, None)
    frame = dataset[1]
    assert frame.stamp_ns == 500_000_000
    np.testing.assert_array_equal(frame.color[5, 5], (8, 2, 1))
    assert frame.depth[0, 0] == frame.depth[0, 1] == 0
    assert frame.depth[5, 5] == 2
    np.testing.assert_allclose(frame.T_map_camera[:3, 3], (5, 0, 0))
    assert frame.camera == COLOR_CAMERA


def test_depth_moves_to_the_colour_camera_and_so_does_the_pose(tmp_path):
    """One patch of depth: its points in the map must not depend on the camera that they are seen from."""
    depth = np.zeros((480, 640), np.uint16)
    depth[200:240, 300:340] = 2000
    path = write_sequence(tmp_path / "fire" / "seq-01", (0, 1), depth)
    frame = open_dataset(path)[1]
    raw = SevenScenesSequence(path, is_registered=True, camera=DEPTH_CAMERA)[1]
    seen, true = (points(f).mean(0) for f in (frame, raw))
    np.testing.assert_allclose(seen, true, atol=2e-3)
    assert frame.camera == COLOR_CAMERA
    # The colour camera is 2.5 cm to the side, and so the patch moves by some pixels.
    assert abs(np.nonzero(frame.depth)[1].mean() - (320 + (319.5 - 320) * 525 / 585)) > 5
    np.testing.assert_allclose(np.linalg.norm(frame.T_map_camera[:3, 3] - (1, 0, 0)), 0.0257, atol=2e-3)


def points(frame):
    v, u = np.nonzero(frame.depth)
    z, c = frame.depth[v, u], frame.camera
    local = np.stack([(u - c.cx) / c.fx * z, (v - c.cy) / c.fy * z, z], 1)
    return local @ frame.T_map_camera[:3, :3].T + frame.T_map_camera[:3, 3]


def test_registration_leaves_no_holes(tmp_path):
    frame = SevenScenesSequence(write_sequence(tmp_path / "s" / "seq-01"))[0]
    assert (frame.depth[60:420, 80:560] > 0).all()


def test_a_scene_names_its_sequences(tmp_path):
    write_sequence(tmp_path / "chess" / "seq-02")
    write_sequence(tmp_path / "chess" / "seq-01")
    with pytest.raises(ValueError, match=r"it holds the sequences seq-01, seq-02: name one of them"):
        open_dataset(tmp_path / "chess")


def test_damaged_files_are_named(tmp_path, caplog):
    path = write_sequence(tmp_path / "s" / "seq-01", (0, 1, 2, 3))
    (path / "frame-000003.pose.txt").write_text("\n".join(["nan nan nan nan"] * 4))
    (path / "frame-000001.depth.png").write_bytes(b"\x89PNG cut off")
    (path / "frame-000002.color.png").unlink()
    with caplog.at_level(logging.WARNING):
        dataset = SevenScenesSequence(path)
    assert "1 of 4 frames have no finite pose" in caplog.text
    assert dataset[0].depth.any()
    with pytest.raises(ValueError, match=r"frame-000001.depth.png: cannot be decoded"):
        dataset[1]
    with pytest.raises(ValueError, match=r"frame-000002.color.png: no such file"):
        dataset[2]
    (path / "frame-000000.pose.txt").write_text("1 0 0 0\n0 1 0 0\n")
    with pytest.raises(ValueError, match=r"frame-000000.pose.txt: expected a 4x4 matrix, got shape \(2, 4\)"):
        SevenScenesSequence(path)
    (path / "frame-000000.pose.txt").write_text("2 0 0 0\n0 2 0 0\n0 0 2 0\n0 0 0 1\n")
    with pytest.raises(ValueError, match=r"frame-000000.pose.txt: pose: not a rigid transform"):
        SevenScenesSequence(path)
