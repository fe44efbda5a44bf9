"""A folder of one's own with a sequence.yaml."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from panoptic_mapper.datasets import open_dataset
from panoptic_mapper.datasets.plain_folder import PlainFolder
from panoptic_mapper.label_spaces import load_label_space

CAMERA = {"fx": 10.0, "fy": 11, "cx": 7.5, "cy": 5.5, "width": 16, "height": 12}


def write_folder(path: Path, names=("a-2", "a-10"), settings=None, poses=None) -> Path:
    for sub in ("color", "depth", "class", "object"):
        (path / sub).mkdir(parents=True)
    for k, name in enumerate(names):
        cv2.imwrite(str(path / "color" / f"{name}.png"), np.full((12, 16, 3), (1, 2, 10 * k), np.uint8))
        cv2.imwrite(str(path / "depth" / f"{name}.png"), np.full((12, 16), 500 + k, np.uint16))
        ids = np.full((12, 16), 7, np.uint8)
        ids[:, 8:] = 3
        cv2.imwrite(str(path / "class" / f"{name}.png"), ids)
        cv2.imwrite(str(path / "object" / f"{name}.png"), np.full((12, 16), 4, np.uint16))
    if poses is None:
        poses = "\n".join(f"1 0 0 {k} 0 1 0 0 0 0 1 0 0 0 0 1" for k in range(len(names)))
    (path / "poses.txt").write_text("# mine\n" + poses)
    (path / "sequence.yaml").write_text(yaml.safe_dump({"camera": CAMERA} | (settings or {})))
    classes = [{"id": 7, "name": "mug", "isthing": True}, {"id": 3, "name": "wall", "isthing": False}]
    (path / "labels.json").write_text(json.dumps({"classes": classes}))
    return path


def test_matrix_poses_in_the_order_of_names(tmp_path):
    dataset = open_dataset(write_folder(tmp_path / "mine", settings={"depth_units_per_m": 250, "fps": 10}))
    assert isinstance(dataset, PlainFolder)
    assert (dataset.name, len(dataset), dataset.label_space) == ("mine", 2, None)
    first, second = dataset  # a-2 before a-10
    np.testing.assert_array_equal(first.color[0, 0], (0, 2, 1))
    np.testing.assert_array_equal(second.color[0, 0], (10, 2, 1))
    assert (first.stamp_ns, second.stamp_ns) == (0, 100_000_000)
    assert first.depth[3, 3] == 2.0
    np.testing.assert_array_equal(second.T_map_camera[:3, 3], (1, 0, 0))
    np.testing.assert_allclose(first.camera.matrix, [[10, 0, 7.5], [0, 11, 5.5], [0, 0, 1]])


def test_tum_poses_are_interpolated_at_the_stamps_in_the_names(tmp_path):
    settings = {"pose_format": "tum"}
    path = write_folder(tmp_path, ("0.5", "0.55", "3.0"), settings, "0.5 0 0 0 0 0 0 1\n0.6 1 2 3 0 0 0 1\n")
    dataset = PlainFolder(path)
    assert [frame.stamp_ns for frame in dataset] == [500_000_000, 550_000_000]
    np.testing.assert_allclose(dataset[1].T_map_camera[:3, 3], (0.5, 1, 1.5))


def test_pose_direction_and_axes(tmp_path):
    """A camera at (1, 2, 3) that looks along the world's -x, in all four ways to write that down."""
    opencv = np.array([[0, 0, -1, 1], [1, 0, 0, 2], [0, -1, 0, 3], [0, 0, 0, 1]], float)
    for axes, flip in (("opencv", np.eye(4)), ("opengl", np.diag([1.0, -1, -1, 1]))):
        for direction in ("camera_to_world", "world_to_camera"):
            T = opencv @ flip
            T = T if direction == "camera_to_world" else np.linalg.inv(T)
            path = tmp_path / axes / direction
            write_folder(
                path, ("0",), {"camera_axes": axes, "pose_direction": direction}, " ".join(map(str, T.ravel()))
            )
            np.testing.assert_allclose(PlainFolder(path)[0].T_map_camera, opencv, atol=1e-9)


def test_labels(tmp_path):
    dataset = PlainFolder(write_folder(tmp_path, settings={"semantic": "class", "instance": "object"}))
    assert dataset.label_space.names == ("unlabeled", "mug", "wall")
    labels = dataset[0].labels
    np.testing.assert_array_equal(labels.semantic[0], [1] * 8 + [2] * 8)
    np.testing.assert_array_equal(labels.instance[0], [4] * 8 + [0] * 8)


def test_labels_in_a_label_space(tmp_path):
    path = write_folder(tmp_path / "a", settings={"semantic": "class", "labels": "nyu40"})
    assert PlainFolder(path).label_space is load_label_space("nyu40")
    path = write_folder(tmp_path / "b", settings={"semantic": "class", "labels": "mine.yaml"})
    (path / "mine.yaml").write_text("classes:\n  - {id: 1, name: mug, thing: true}\n  - {id: 2, nam: wall}\n")
    with pytest.raises(ValueError, match=r"mine.yaml:3: unknown key 'nam' of a class; did you mean 'name'"):
        PlainFolder(path)


def test_distorted_images_are_undistorted_alike(tmp_path):
    camera = CAMERA | {"distortion": [0.3, 0.0, 0.0, 0.0]}
    frame = PlainFolder(write_folder(tmp_path, settings={"camera": camera, "semantic": "class"}))[0]
    # With this lens a pinhole image sees beyond the corners of the picture taken.
    assert frame.depth[0, 0] == 0
    assert frame.labels.semantic[0, 0] == 0
    assert not frame.color[0, 0].any()
    assert frame.depth[6, 8] == 0.5


def test_lost_poses_are_left_out(tmp_path):
    poses = " ".join(["nan"] * 16) + "\n1 0 0 5 0 1 0 0 0 0 1 0 0 0 0 1\n"
    dataset = PlainFolder(write_folder(tmp_path, poses=poses))
    assert len(dataset) == 1
    assert dataset[0].T_map_camera[0, 3] == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colour": "x"}, r"sequence.yaml: unknown key 'colour'; did you mean 'color'"),
        ({"camera": {}}, r"sequence.yaml.camera: PlainCamera.fx: expected a value > 0, got 0.0"),
        ({"camera": CAMERA | {"cx": None}}, r"PlainCamera.cx: expected float, got None"),
        ({"camera": {k: v for k, v in CAMERA.items() if k != "cx"}}, r"camera: intrinsics: expected finite .* cx"),
        ({"camera": CAMERA | {"distortion": [0.1]}}, r"distortion: expected 4, 5 or 8 coefficients, got 1"),
        ({"pose_format": "euler"}, r"pose_format: expected one of matrix, tum, got 'euler'"),
        ({"color": "images"}, r"images: no such folder"),
        ({"poses": "none.txt"}, r"none.txt: cannot be read"),
        ({"semantic": "class", "labels": "none.json"}, r"none.json: not a readable list of classes"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        PlainFolder(write_folder(tmp_path, settings=settings))


def test_damaged_files_are_named(tmp_path):
    path = write_folder(tmp_path)
    cv2.imwrite(str(path / "depth" / "a-2.png"), np.ones((6, 8), np.uint16))
    (path / "depth" / "a-10.png").unlink()
    dataset = PlainFolder(path)
    with pytest.raises(ValueError, match=r"depth/a-2.png: expected 16x12 as the camera, got \(8, 6\)"):
        dataset[0]
    with pytest.raises(ValueError, match=r"depth/a-10.png: no such file"):
        dataset[1]
    (path / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1\n")
    with pytest.raises(ValueError, match=r"poses.txt: expected 2 poses as images in .*color, got 1"):
        PlainFolder(path)
    (path / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1\n" * 2)
    (path / "sequence.yaml").write_text("camera: {")
    with pytest.raises(ValueError, match=r"cannot read the configuration file .*sequence.yaml"):
        PlainFolder(path)
