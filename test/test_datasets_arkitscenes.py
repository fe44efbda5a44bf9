"""The ARKitScenes reader against a folder that the tests write as DATA.md of ARKitScenes describes it."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from panoptic_mapper.datasets import open_dataset
from panoptic_mapper.datasets.arkitscenes import ArkitRecording

VIDEO = "47333462"
START = 8255.131


def camera_to_world(t: float) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec([0.4, -0.3 * t, 1.1]).as_matrix()
    T[:3, 3] = (t, 2, 1.5)
    return T


def write_recording(root: Path, times=(0.0, 0.05, 0.1), intrinsics_shift_s=0.001) -> Path:
    path = root / VIDEO
    for sub in ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics"):
        (path / sub).mkdir(parents=True)
    depth = np.full((192, 256), 1500, np.uint16)
    depth[0, 0] = 0
    for t in times:
        name = f"{VIDEO}_{START + t:.3f}"
        cv2.imwrite(str(path / "lowres_wide" / f"{name}.png"), np.full((192, 256, 3), (10, 20, 30), np.uint8))
        cv2.imwrite(str(path / "lowres_depth" / f"{name}.png"), depth)
        pincam = path / "lowres_wide_intrinsics" / f"{VIDEO}_{START + t + intrinsics_shift_s:.3f}.pincam"
        pincam.write_text("256 192 212.027 212.027 128.302 95.843")
    lines = []
    for t in np.arange(-0.1, 0.35, 0.1):  # the file holds world to camera
        T = np.linalg.inv(camera_to_world(t))
        values = [*Rotation.from_matrix(T[:3, :3]).as_rotvec(), *T[:3, 3]]
        lines.append(f"{START + t:.6f} " + " ".join(f"{v:.9f}" for v in values))
    (path / "lowres_wide.traj").write_text("\n".join(lines) + "\n")
    return path


def test_poses_are_camera_to_world_and_interpolated(tmp_path):
    dataset = open_dataset(write_recording(tmp_path))
    assert isinstance(dataset, ArkitRecording)
    assert (dataset.name, len(dataset), dataset.label_space) == (VIDEO, 3, None)
    np.testing.assert_allclose(dataset[2].T_map_camera, camera_to_world(0.1), atol=1e-6)
    between = dataset[1]
    assert between.stamp_ns == 8_255_181_000_000
    np.testing.assert_allclose(between.T_map_camera, camera_to_world(0.05), atol=1e-4)


def test_images_and_intrinsics(tmp_path):
    frame = ArkitRecording(write_recording(tmp_path))[0]
    np.testing.assert_array_equal(frame.color[5, 5], (30, 20, 10))
    assert frame.depth[0, 0] == 0
    assert frame.depth[5, 5] == 1.5
    np.testing.assert_allclose(frame.camera.matrix, [[212.027, 0, 128.302], [0, 212.027, 95.843], [0, 0, 1]])


def test_images_without_partners_are_left_out_and_counted(tmp_path, caplog):
    path = write_recording(tmp_path, times=(0.0, 0.05, 0.1, 9.0))
    (path / "lowres_depth" / f"{VIDEO}_{START:.3f}.png").unlink()
    with caplog.at_level(logging.WARNING):
        dataset = ArkitRecording(path)
    assert "2 of 4 colour images" in caplog.text
    assert [frame.stamp_ns for frame in dataset] == [8_255_181_000_000, 8_255_231_000_000]
    for file in (path / "lowres_depth").iterdir():
        file.rename(file.with_name(f"{VIDEO}_1.000{file.name[-5]}.png"))
    with pytest.raises(ValueError, match="none of 4 colour images has depth, intrinsics and a pose"):
        ArkitRecording(path)


def test_damaged_files_are_named(tmp_path):
    path = write_recording(tmp_path)
    pincam = sorted((path / "lowres_wide_intrinsics").iterdir())
    pincam[0].write_text("256 192 212.027 212.027 128.302")
    pincam[1].write_text("256 192 0 212.027 128.302 95")
    pincam[2].write_text("256 192 f 212.027 128.302 95")
    dataset = ArkitRecording(path)
    messages = ("line 1: expected 6 words", "intrinsics: expected finite fx, fy > 0", "line 1: could not convert")
    for index, message in enumerate(messages):
        with pytest.raises(ValueError, match=rf"{VIDEO}_.*pincam: {message}"):
            dataset[index]
    pincam[0].write_text("640 480 500 500 320 240")
    with pytest.raises(ValueError, match=r"lowres_wide/.*png: colour image: expected uint8 \(480, 640, 3\)"):
        dataset[0]
    (path / "lowres_wide.traj").write_text("1 2 3\n")
    with pytest.raises(ValueError, match=r"lowres_wide.traj: line 1: expected 7 words"):
        ArkitRecording(path)
    (path / "lowres_wide" / "odd.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"odd.png: expected a time in seconds, got 'odd'"):
        ArkitRecording(path)
    for file in (path / "lowres_depth").iterdir():
        file.unlink()
    (path / "lowres_wide" / "odd.png").unlink()
    with pytest.raises(ValueError, match=r"lowres_depth: no files <video id>_<seconds>.png"):
        ArkitRecording(path)
