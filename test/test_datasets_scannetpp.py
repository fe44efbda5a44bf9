"""The ScanNet++ reader against files that the tests write as the dataset's documentation and toolbox describe them."""

import json
import logging
import struct
import zlib
from pathlib import Path

import cv2
import lz4.block
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from panoptic_mapper.datasets import open_dataset
from panoptic_mapper.datasets.colmap import read_cameras, read_images
from panoptic_mapper.datasets.scannetpp import LidarScene, RenderedScene
from panoptic_mapper.datasets.scannetpp_depth import LidarDepth
from panoptic_mapper.datasets.video_frames import VideoFrames

SIZE = (96, 72)  # of colour


def depth_m(number: int) -> np.ndarray:
    depth = np.full((192, 256), 1.0 + number, np.float32)
    depth[0, 0] = 0
    return depth


def deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def depth_bin(form: str, count: int) -> bytes:
    if form == "stream":
        return deflate(b"".join(depth_m(n).tobytes() for n in range(count)))
    parts = []
    for n in range(count):
        if form == "lz4":
            data = lz4.block.compress((depth_m(n) * 1000).astype("<u2").tobytes(), store_size=False)
        else:
            data = deflate(depth_m(n).tobytes())
        parts.append(struct.pack("<I", len(data)) + data)
    return b"".join(parts)


def pose(x: float) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec([0.3, -0.2, x]).as_matrix()
    T[:3, 3] = (x, 2, 1)
    return T


def write_iphone(root: Path, count=4, depth="lz4", video=True) -> Path:
    path = root / "036bce3393" / "iphone"
    path.mkdir(parents=True)
    entries = {}
    images = [np.full((SIZE[1], SIZE[0], 3), 40 + 40 * n, np.uint8) for n in range(count)]
    if video:
        writer = cv2.VideoWriter(str(path / "rgb.mkv"), cv2.VideoWriter_fourcc(*"MJPG"), 60, SIZE)
        for image in images:
            writer.write(image)
        writer.release()
    else:
        (path / "rgb").mkdir()
        for n, image in enumerate(images):
            cv2.imwrite(str(path / "rgb" / f"frame_{n:06d}.jpg"), image)
    if depth == "png":
        (path / "depth").mkdir()
        for n in range(count):
            cv2.imwrite(str(path / "depth" / f"frame_{n:06d}.png"), (depth_m(n) * 1000).astype(np.uint16))
    else:
        (path / "depth.bin").write_bytes(depth_bin(depth, count))
    for n in reversed(range(count)):
        entries[f"frame_{n:06d}"] = {
            "timestamp": 100.5 + n / 60,
            "pose": np.eye(4).tolist(),
            "aligned_pose": pose(n).tolist(),
            "intrinsic": [[80.0, 0, 47.5], [0, 80.0, 35.5], [0, 0, 1]],
            "imu": {"rotate_rate": [0, 0, 0]},
        }
    (path / "pose_intrinsic_imu.json").write_text(json.dumps(entries))
    return path


@pytest.mark.parametrize("depth", ["lz4", "deflate", "stream", "png"])
@pytest.mark.parametrize("video", [True, False])
def test_lidar_recordings_in_all_their_forms(tmp_path, depth, video):
    path = write_iphone(tmp_path, depth=depth, video=video)
    dataset = open_dataset(path.parent)
    assert isinstance(dataset, LidarScene)
    assert (dataset.name, len(dataset), dataset.label_space) == ("036bce3393-iphone", 4, None)
    for index in (2, 0, 3, 3):  # backwards, too
        frame = dataset[index]
        assert frame.stamp_ns == round((100.5 + index / 60) * 1e9)
        assert frame.color.shape == (192, 256, 3)
        np.testing.assert_allclose(frame.color, 40 + 40 * index, atol=6)
        assert frame.depth[0, 0] == 0
        assert frame.depth[100, 100] == pytest.approx(1 + index)
        np.testing.assert_allclose(frame.T_map_camera, pose(index), atol=1e-9)
    assert frame.camera.fx == pytest.approx(80 * 256 / 96)
    assert frame.camera.cx == pytest.approx(127.5)


def test_frames_without_pose_or_image_are_left_out(tmp_path, caplog):
    path = write_iphone(tmp_path, depth="png", video=False)
    entries = json.loads((path / "pose_intrinsic_imu.json").read_text())
    entries["frame_000001"]["aligned_pose"] = np.full((4, 4), np.nan).tolist()
    for entry in entries.values():
        del entry["timestamp"]
    (path / "pose_intrinsic_imu.json").write_text(json.dumps(entries))
    (path / "depth" / "frame_000002.png").unlink()
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(path)
    assert "2 of 4 frames lack an image or a pose" in caplog.text
    assert [frame.stamp_ns for frame in dataset] == [0, 50_000_000]


def test_damaged_iphone_files_are_named(tmp_path):
    path = write_iphone(tmp_path)
    file = path / "pose_intrinsic_imu.json"
    entries = json.loads(file.read_text())
    entries["frame_000009"] = entries["frame_000003"]
    file.write_text(json.dumps(entries))
    dataset = LidarScene(path)
    with pytest.raises(ValueError, match=r"rgb.mkv: expected a frame 9, but the video ends after 4"):
        dataset[4]
    (path / "rgb.mkv").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"rgb.mkv: cannot be decoded as a video"):
        VideoFrames(path / "rgb.mkv")
    for change, message in (
        ({"aligned_pose": [[1]]}, r"frame_000003: expected aligned_pose \(4x4\) and intrinsic \(3x3\)"),
        ({"aligned_pose": np.diag([2.0, 1, 1, 1]).tolist()}, r"frame_000003: pose: not a rigid transform"),
    ):
        file.write_text(json.dumps({"frame_000003": entries["frame_000000"] | change}))
        (path / "rgb").mkdir(exist_ok=True)
        cv2.imwrite(str(path / "rgb" / "frame_000003.jpg"), np.zeros((3, 4, 3), np.uint8))
        with pytest.raises(ValueError, match=message):
            LidarScene(path)
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"pose_intrinsic_imu.json: expected entries frame_000000"):
        LidarScene(path)


def test_damaged_depth_is_named(tmp_path):
    file = tmp_path / "depth.bin"
    file.write_bytes(depth_bin("lz4", 2))
    with pytest.raises(ValueError, match=r"depth.bin: expected a frame 2, but there are 2"):
        LidarDepth(file).read(2)
    file.write_bytes(depth_bin("lz4", 2)[:-9])
    with pytest.raises(ValueError, match=r"depth.bin: frame 0: neither frames with their sizes nor a deflate stream"):
        LidarDepth(file)
    file.write_bytes(struct.pack("<I", 5) + b"hello")
    with pytest.raises(ValueError, match=r"depth.bin: frame 0: 5 bytes are neither LZ4 nor deflate"):
        LidarDepth(file).read(0)
    small = deflate(b"few")
    file.write_bytes(struct.pack("<I", len(small)) + small)
    with pytest.raises(ValueError, match=r"expected 196608 bytes of 256x192, got 3"):
        LidarDepth(file).read(0)
    file.write_bytes(depth_bin("stream", 2))
    with pytest.raises(ValueError, match=r"depth.bin: expected a frame 2, but the stream ends"):
        LidarDepth(file).read(2)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"depth.bin: the file is empty"):
        LidarDepth(file)


def write_colmap(device: Path, camera: str, names: list[str], poses: list[np.ndarray]) -> None:
    (device / "colmap").mkdir(parents=True)
    (device / "colmap" / "cameras.txt").write_text(
        f"# Camera list with one line of data per camera:\n# Number of cameras: 1\n1 {camera}\n"
    )
    lines = ["# Image list with two lines of data per image:"]
    for k, (name, T) in enumerate(zip(names, poses, strict=True)):
        inverse = np.linalg.inv(T)
        x, y, z, w = Rotation.from_matrix(inverse[:3, :3]).as_quat()
        tx, ty, tz = inverse[:3, 3]
        lines += [f"{k + 1} {w:.9f} {x:.9f} {y:.9f} {z:.9f} {tx:.9f} {ty:.9f} {tz:.9f} 1 {name}"]
        lines += ["10.5 20.5 -1 30.5 40.5 7" if k % 2 else ""]  # 2D points, perhaps none
    (device / "colmap" / "images.txt").write_text("\n".join(lines) + "\n")


def test_iphone_images_with_rendered_depth(tmp_path):
    path = write_iphone(tmp_path, video=False)
    write_colmap(
        path, "OPENCV 96 72 80 80 48 36 0 0 0 0", ["video/frame_000000.jpg", "frame_000002.jpg"], [pose(5), pose(6)]
    )
    (path / "render_depth").mkdir()
    for n in (0, 2):
        cv2.imwrite(str(path / "render_depth" / f"frame_{n:06d}.png"), np.full((72, 96), 3000 + n, np.uint16))
    dataset = open_dataset(path.parent)
    assert isinstance(dataset, RenderedScene)
    assert len(dataset) == 2
    frame = next(f for f in dataset if f.stamp_ns > 0)
    assert frame.stamp_ns == round(2e9 / 60)
    np.testing.assert_allclose(frame.color, 120, atol=3)
    np.testing.assert_allclose(frame.depth, 3.002, rtol=1e-6)
    np.testing.assert_allclose(frame.T_map_camera, pose(6), atol=1e-6)
    # COLMAP counts pixels from their corners
    np.testing.assert_allclose(frame.camera.matrix, [[80, 0, 47.5], [0, 80, 35.5], [0, 0, 1]])


def test_dslr_fisheye_images_are_undistorted_with_their_depth(tmp_path):
    """A plane across the axis, with a stripe that is nearer: the stripe is straight again, in colour and in depth."""
    device = tmp_path / "036bce3393" / "dslr"
    f, c, (width, height), k = 70.0, (48, 36), SIZE, (0.1, 0.02, 0.0, 0.0)
    v, u = np.mgrid[:height, :width].astype(float)
    xd, yd = (u - c[0] + 0.5) / f, (v - c[1] + 0.5) / f
    theta_d = np.hypot(xd, yd)
    theta = theta_d.copy()
    for _ in range(20):  # of the angle that the fisheye model makes this radius of
        theta = theta_d / (1 + k[0] * theta**2 + k[1] * theta**4)
    x = np.tan(theta) * xd / np.maximum(theta_d, 1e-9)
    stripe = x > 0.2
    (device / "resized_images").mkdir(parents=True)
    (device / "render_depth").mkdir()
    cv2.imwrite(str(device / "resized_images" / "DSC00001.JPG"), np.where(stripe, 200, 20)[..., None].repeat(3, 2))
    cv2.imwrite(str(device / "render_depth" / "DSC00001.png"), np.where(stripe, 1000, 2000).astype(np.uint16))
    write_colmap(
        device, f"OPENCV_FISHEYE 96 72 {f} {f} {c[0]} {c[1]} {k[0]} {k[1]} {k[2]} {k[3]}", ["DSC00001.JPG"], [pose(1)]
    )
    frame = open_dataset(device)[0]
    assert frame.camera.width == width
    edge = frame.camera.fx * 0.2 + frame.camera.cx  # of the stripe, in every row
    cols = np.arange(width)
    for row in range(8, height - 8):
        right, left = cols > edge + 1.5, (cols < edge - 1.5) & (cols > 8)
        np.testing.assert_allclose(frame.depth[row, right & (cols < width - 8)], 1.0)
        np.testing.assert_allclose(frame.depth[row, left], 2.0)
        assert frame.color[row, int(edge) + 5].min() > 150
        assert frame.color[row, int(edge) - 5].max() < 80
    np.testing.assert_allclose(frame.T_map_camera, pose(1), atol=1e-6)


def test_damaged_colmap_files_are_named(tmp_path):
    write_colmap(tmp_path, "PINHOLE 96 72 80 80 48 36", ["a.jpg"], [pose(0)])
    cameras, images = tmp_path / "colmap" / "cameras.txt", tmp_path / "colmap" / "images.txt"
    assert read_cameras(cameras)[1].pinhole.cx == 47.5
    cases = {
        "1 RADIAL 96 72 80 48 36 0 0": r"cameras.txt: line 1: expected a camera of .* got 'RADIAL'",
        "1 OPENCV 96 72 80 80 48 36": r"line 1: expected 8 parameters, got 4",
        "1 PINHOLE 96 72 80 80 wide 36": r"line 1: could not convert string to float: 'wide'",
        "1 PINHOLE 96 72 80 80 148 36": r"line 1: intrinsics: principal point",
        "# none": r"cameras.txt: no cameras",
    }
    for content, message in cases.items():
        cameras.write_text(content + "\n")
        with pytest.raises(ValueError, match=message):
            read_cameras(cameras)
    cases = {
        "1 1 0 0 0 0 0 0 1\n": r"images.txt: line 1: expected IMAGE_ID .* got 9 words",
        "1 0 0 0 0 0 0 0 1 a.jpg\n": r"line 1: pose: expected a unit quaternion",
        "": r"images.txt: no images",
    }
    for content, message in cases.items():
        images.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_images(images)


def test_rendered_scenes_that_contradict_themselves(tmp_path, caplog):
    path = write_iphone(tmp_path, video=False)
    write_colmap(
        path, "PINHOLE 96 72 80 80 48 36", ["frame_000000.jpg", "frame_000001.jpg", "frame_000009.jpg"], [pose(0)] * 3
    )
    (path / "render_depth").mkdir()
    with pytest.raises(ValueError, match=r"render_depth: no depth of any of 3 images"):
        RenderedScene(path)
    cv2.imwrite(str(path / "render_depth" / "frame_000000.png"), np.ones((36, 48), np.uint16))
    cv2.imwrite(str(path / "render_depth" / "frame_000009.png"), np.ones((72, 96), np.uint16))
    with caplog.at_level(logging.WARNING):
        dataset = RenderedScene(path)
    assert "1 of 3 images have no rendered depth" in caplog.text
    with pytest.raises(ValueError, match=r"frame_000000.png: expected 96x72 as cameras.txt says, got 48x36"):
        dataset[0]
    with pytest.raises(ValueError, match=r"rgb/frame_000009.jpg: no such file"):
        dataset[1]
    cameras = path / "colmap" / "cameras.txt"
    cameras.write_text(cameras.read_text().replace("\n1 PINHOLE", "\n2 PINHOLE"))
    with pytest.raises(ValueError, match=r"images.txt: frame_000000.jpg: no camera 1 in cameras.txt"):
        RenderedScene(path)


def test_a_scene_without_anything_to_read_says_what_was_expected(tmp_path):
    (tmp_path / "036bce3393" / "iphone").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"expected pose_intrinsic_imu.json .* or render_depth/ .*iphone or .*dslr"):
        open_dataset(tmp_path / "036bce3393")
