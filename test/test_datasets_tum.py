"""The TUM RGB-D reader against a folder that the tests write as the benchmark's page describes it."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from panoptic_mapper.datasets import open_dataset
from panoptic_mapper.datasets.tum import CAMERAS, TumCamera, TumSequence

T0 = 1305031102
EDGE = 160  # px


def write_sequence(path: Path, stamps=(0.0, 0.1, 0.2), depth_delay_s=0.008, poses=None) -> Path:
    """Colour images with a vertical edge, depth of 1.5 m left and 3 m right of it."""
    for sub in ("rgb", "depth"):
        (path / sub).mkdir(parents=True)
    color = np.zeros((480, 640, 3), np.uint8)
    color[:, :EDGE] = (30, 60, 90)  # BGR
    depth = np.full((480, 640), 15000, np.uint16)
    depth[:, :EDGE] = 7500
    depth[0, 0] = 0
    _, color_png = cv2.imencode(".png", color)
    _, depth_png = cv2.imencode(".png", depth)
    lists = {"rgb": ["# color images", "# file: 'x.bag'", "# timestamp filename"], "depth": ["# timestamp filename"]}
    for k, s in enumerate(stamps):
        for kind, delay, data in (("rgb", 0, color_png), ("depth", depth_delay_s, depth_png)):
            stamp = f"{T0 + s + delay:.6f}"
            (path / kind / f"{stamp}.png").write_bytes(data.tobytes())
            lists[kind].insert(1 if k % 2 else len(lists[kind]), f"{stamp} {kind}/{stamp}.png")  # in no order
    for kind, lines in lists.items():
        (path / f"{kind}.txt").write_text("\n".join(lines) + "\n")
    # 10 cm/s along x, turning 0.1 rad/s about z
    poses = [(s, s, 0.1 * s) for s in np.arange(-0.05, 0.3, 0.05)] if poses is None else poses
    rows = [f"{T0 + t:.4f} {x:.4f} 2 3 0 0 {np.sin(a / 2):.6f} {np.cos(a / 2):.6f}" for t, x, a in poses]
    (path / "groundtruth.txt").write_text(
        "# ground truth trajectory\n# timestamp tx ty tz qx qy qz qw\n" + "\n".join(rows)
    )
    return path


def test_associates_by_stamp_and_interpolates_poses(tmp_path):
    path = write_sequence(tmp_path / "rgbd_dataset_freiburg3_x", stamps=(0.0, 0.105, 0.2))
    dataset = open_dataset(path)
    assert isinstance(dataset, TumSequence)
    assert (dataset.name, len(dataset), dataset.label_space) == ("rgbd_dataset_freiburg3_x", 3, None)
    frame = dataset[1]
    assert frame.stamp_ns == T0 * 10**9 + 105_000_000
    np.testing.assert_allclose(frame.T_map_camera[:3, 3], (0.105, 2, 3), atol=1e-4)
    assert np.arctan2(frame.T_map_camera[1, 0], frame.T_map_camera[0, 0]) == pytest.approx(0.0105, abs=1e-4)
    np.testing.assert_array_equal(frame.color[5, 5], (90, 60, 30))
    assert frame.depth[0, 0] == 0
    assert frame.depth[5, 5] == pytest.approx(1.5)
    assert frame.depth[5, 400] == pytest.approx(3.0)
    assert (frame.camera.fx, frame.camera.fy, frame.camera.cx, frame.camera.cy) == CAMERAS["freiburg3"].intrinsics


def test_stamps_are_exact(tmp_path):
    path = write_sequence(tmp_path / "freiburg3", stamps=(0.175304,))
    assert TumSequence(path)[0].stamp_ns == T0 * 10**9 + 175_304_000


def test_colour_and_depth_are_undistorted_alike(tmp_path):
    """A vertical edge that the lens bends: where it comes to lie, both images agree, and so does the lens model."""
    frame = TumSequence(write_sequence(tmp_path / "freiburg1"))[0]
    row = 60
    edge_depth = int(np.argmax(frame.depth[row] > 2))
    edge_color = 40 + int(np.argmax(frame.color[row, 40:].sum(1) < 90))
    assert abs(edge_depth - edge_color) <= 1
    assert abs(edge_depth - EDGE) > 2
    (fx, fy, cx, cy), (k1, k2, p1, p2, k3) = CAMERAS["freiburg1"].intrinsics, CAMERAS["freiburg1"].distortion
    x, y = (edge_depth - cx) / fx, (row - cy) / fy
    r2 = x * x + y * y
    u = fx * (x * (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + cx
    assert u == pytest.approx(EDGE - 0.5, abs=1.5)
    assert set(np.unique(frame.depth)) <= {np.float32(0), np.float32(1.5), np.float32(3)}  # nothing is mixed


def test_images_without_partner_are_left_out_and_counted(tmp_path, caplog):
    path = write_sequence(tmp_path / "freiburg3", stamps=(0.0, 0.1, 0.2, 5.0))
    lines = (path / "depth.txt").read_text().splitlines()
    (path / "depth.txt").write_text("\n".join(line for line in lines if not line.startswith(f"{T0}.108")))
    with caplog.at_level(logging.WARNING):
        dataset = TumSequence(path)
    assert "of 4 colour images, 1 have no depth image within 0.02 s and 1 no pose" in caplog.text
    assert [frame.stamp_ns - T0 * 10**9 for frame in dataset] == [0, 200_000_000]


def test_no_interpolation_across_gaps_of_the_ground_truth(tmp_path):
    path = write_sequence(tmp_path / "freiburg3", poses=[(-0.01, 0, 0), (0.01, 0, 0), (0.19, 0, 0), (0.21, 0, 0)])
    assert len(TumSequence(path)) == 2
    assert len(TumSequence(path, max_pose_gap_s=0.2)) == 3
    with pytest.raises(ValueError, match=r"none of 3 colour images has a depth image within 0.001 s"):
        TumSequence(path, max_difference_s=0.001)


def test_the_camera_is_named_or_given(tmp_path):
    path = write_sequence(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"mine: expected a folder named after its camera \(freiburg1, freiburg2"):
        TumSequence(path)
    assert TumSequence(path, camera="freiburg2")[0].camera.fx == 520.9
    own = TumCamera((500, 501, 320, 240), (0, 0, 0, 0, 0))
    assert TumSequence(path, camera=own)[0].camera.fy == 501


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("rgb.txt", "1.0\n", r"rgb.txt: line 1: expected 2 words \(stamp file\), got 1"),
        ("depth.txt", "# nothing\n", r"depth.txt: no lines of stamp file"),
        ("depth.txt", "noon depth/1.png\n", r"depth.txt: line 1: expected a time in seconds, got 'noon'"),
        ("groundtruth.txt", "# x\n1 2 3 4 5 6 7\n", r"groundtruth.txt: line 2: expected 8 words .*, got 7"),
        ("groundtruth.txt", "1 2 3 4 0 0 0 0\n", r"groundtruth.txt: line 1: pose: expected a unit quaternion"),
        ("groundtruth.txt", "1 2 3 4 0 0 zero 1\n", r"groundtruth.txt: line 1: could not convert .*'zero'"),
        ("groundtruth.txt", None, r"groundtruth.txt: cannot be read"),
    ],
)
def test_damaged_lists_are_named_with_the_line(tmp_path, file, content, message):
    path = write_sequence(tmp_path / "freiburg3")
    (path / file).unlink()
    if content is not None:
        (path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        TumSequence(path)


def test_images_of_another_size_and_missing_ones_are_named(tmp_path):
    path = write_sequence(tmp_path / "freiburg3")
    first, second, third = sorted((path / "depth").iterdir())
    cv2.imwrite(str(first), np.ones((240, 320), np.uint16))
    second.unlink()
    third.write_bytes(third.read_bytes()[:100])
    dataset = TumSequence(path)
    for index, message in enumerate(("expected 640x480, got 320x240", "no such file", "cannot be decoded")):
        with pytest.raises(ValueError, match=rf"depth/.*png: {message}"):
            dataset[index]
