"""Bags written and read again; association by stamp; transforms; damaged bags."""

import logging
import shutil

import numpy as np
import pytest
from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from panoptic_mapper.datasets.rosbag import RosbagConfig, RosbagDataset
from panoptic_mapper.datasets.rosbag_writer import FIRST_STAMP_NS, write_rosbag
from panoptic_mapper.datasets.synthetic import SyntheticConfig, SyntheticRoom
from panoptic_mapper.datasets.tf_tree import TransformTree
from panoptic_mapper.frame import Frame, PinholeCamera

TYPES = get_typestore(Stores.ROS2_JAZZY)
WIDTH, HEIGHT = 8, 6
MS = 10**6


@pytest.fixture(scope="module")
def room():
    return SyntheticRoom(SyntheticConfig(num_frames=5, width=64, height=48, fps=10))


@pytest.fixture(scope="module")
def bags(room, tmp_path_factory):
    """A folder with the room as the bags `mcap` and `sqlite3`."""
    folder = tmp_path_factory.mktemp("bags")
    for storage in ("mcap", "sqlite3"):
        assert write_rosbag(room, folder / storage, storage=storage) == 5
    return folder


@pytest.fixture
def bag(bags):
    return bags / "mcap"


def new(msgtype, *fields):
    return TYPES.types[msgtype](*fields)


def header(stamp_ns, frame_id="camera"):
    return new("std_msgs/msg/Header", new("builtin_interfaces/msg/Time", *divmod(stamp_ns, 10**9)), frame_id)


def image(stamp_ns, encoding, pixels):
    data = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)
    height, width = pixels.shape[:2]
    return new("sensor_msgs/msg/Image", header(stamp_ns), height, width, encoding, 0, len(data) // height, data)


def vector(kind, *values):
    return new(f"geometry_msgs/msg/{kind}", *map(float, values))


def pose(stamp_ns, x, q=(0, 0, 0, 1)):
    inner = new("geometry_msgs/msg/Pose", vector("Point", x, 0, 0), vector("Quaternion", *q))
    return new("geometry_msgs/msg/PoseStamped", header(stamp_ns, "map"), inner)


def odometry(stamp_ns, x):
    with_covariance = new("geometry_msgs/msg/PoseWithCovariance", pose(0, x).pose, np.zeros(36))
    zero = new("geometry_msgs/msg/Twist", vector("Vector3", 0, 0, 0), vector("Vector3", 0, 0, 0))
    twist = new("geometry_msgs/msg/TwistWithCovariance", zero, np.zeros(36))
    return new("nav_msgs/msg/Odometry", header(stamp_ns, "map"), "camera", with_covariance, twist)


def transform(stamp_ns, parent, child, x):
    inner = new("geometry_msgs/msg/Transform", vector("Vector3", x, 0, 0), vector("Quaternion", 0, 0, 0, 1))
    stamped = new("geometry_msgs/msg/TransformStamped", header(stamp_ns, parent), child, inner)
    return new("tf2_msgs/msg/TFMessage", [stamped])


def camera_info(width=WIDTH, height=HEIGHT, d=0.0):
    k = np.array([7.0, 0, 3.5, 0, 7, 2.5, 0, 0, 1])
    roi = new("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
    distortion = np.array([d, 0, 0, 0, 0])
    fields = (height, width, "plumb_bob", distortion, k, np.eye(3).reshape(-1), np.zeros(12), 0, 0, roi)
    return new("sensor_msgs/msg/CameraInfo", header(0), *fields)


def write(path, messages):
    """A bag of (topic, bag time ns, message)."""
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for topic, time_ns, message in messages:
            msgtype = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=TYPES)
            writer.write(connections[topic], time_ns, TYPES.serialize_cdr(message, msgtype))
    return path


def images(stamp_ns, depth_stamp_ns=None):
    """A colour image, whose red is the stamp in ms, and a depth image."""
    depth_ns = stamp_ns if depth_stamp_ns is None else depth_stamp_ns
    color = np.full((HEIGHT, WIDTH, 3), (stamp_ns // MS % 256, 2, 3), np.uint8)
    depth = np.full((HEIGHT, WIDTH), 1.5, np.float32)
    return [
        ("/camera/color/image_raw", stamp_ns, image(stamp_ns, "rgb8", color)),
        ("/camera/depth/image_raw", depth_ns, image(depth_ns, "32FC1", depth)),
    ]


def recording(path, extra, stamps_ms=(100, 200)):
    messages = [("/camera/color/camera_info", 0, camera_info())]
    for ms in stamps_ms:
        messages += images(ms * MS)
    return write(path, messages + extra)


def poses(*stamped_x):
    return [("/camera/pose", ms * MS, pose(ms * MS, x)) for ms, x in stamped_x]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_round_trip(room, tmp_path, storage):
    done = []
    write_rosbag(room, tmp_path / "b", storage=storage, every=2, progress=lambda k, n: done.append((k, n)))
    assert done == [(1, 3), (2, 3), (3, 3)]
    dataset = RosbagDataset(tmp_path / "b")
    assert len(dataset) == 3
    assert dataset.label_space == room.label_space
    for index in range(3):
        frame, original = dataset[index], room[2 * index]
        assert frame.stamp_ns == original.stamp_ns + FIRST_STAMP_NS
        np.testing.assert_array_equal(frame.color, original.color)
        np.testing.assert_allclose(frame.depth, original.depth, atol=0.00051)
        np.testing.assert_allclose(frame.T_map_camera, original.T_map_camera, atol=1e-9)
        assert frame.camera == original.camera
        np.testing.assert_array_equal(frame.labels.semantic, original.labels.semantic)
        pairs = np.unique(np.stack([frame.labels.instance, original.labels.instance]).reshape(2, -1), axis=1)
        assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]  # one to one


def test_single_file_opens(bag):
    assert len(RosbagDataset(next(bag.glob("*.mcap")))) == 5


def test_jpeg_colour(room, tmp_path):
    write_rosbag(room, tmp_path / "b", color="jpeg", every=5)
    difference = RosbagDataset(tmp_path / "b")[0].color.astype(int) - room[0].color
    assert np.abs(difference).mean() < 5


def test_poses_also_come_from_tf(bag, room):
    dataset = RosbagDataset(bag, RosbagConfig(pose_source="tf"))
    np.testing.assert_allclose(dataset[3].T_map_camera, room[3].T_map_camera, atol=1e-9)


def test_label_space_is_latched_and_first(bag):
    with Reader(bag) as reader:
        qos = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
        first = next(iter(reader.messages()))[0]
    assert qos["/camera/label_space"].durability == QosDurability.TRANSIENT_LOCAL
    assert qos["/camera/depth/image_raw"].durability == QosDurability.VOLATILE
    assert first.topic == "/camera/label_space"


def test_depth_beyond_sixteen_bits_becomes_none(tmp_path):
    class Far:
        name, label_space = "far", None

        def __len__(self):
            return 1

        def __getitem__(self, index):
            depth = np.array([[70.0, 65.534], [0.0004, 2.0]], np.float32)
            return Frame(5, np.zeros((2, 2, 3), np.uint8), depth, np.eye(4), PinholeCamera(2, 2, 0.5, 0.5, 2, 2))

    write_rosbag(Far(), tmp_path / "b")
    dataset = RosbagDataset(tmp_path / "b")
    np.testing.assert_allclose(dataset[0].depth, [[0, 65.534], [0, 2]], rtol=1e-6)
    assert dataset.label_space is None
    assert dataset[0].labels is None


def test_existing_targets_are_kept_unless_asked(room, tmp_path):
    write_rosbag(room, tmp_path / "b", every=5)
    with pytest.raises(ValueError, match="b: exists already"):
        write_rosbag(room, tmp_path / "b")
    write_rosbag(room, tmp_path / "b", every=2, overwrite=True)
    assert len(RosbagDataset(tmp_path / "b")) == 3
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="not a rosbag"):
        write_rosbag(room, tmp_path / "mine", overwrite=True)


def test_a_failing_dataset_leaves_nothing_behind(room, tmp_path):
    class Broken:
        name, label_space = "broken", room.label_space

        def __len__(self):
            return 2

        def __getitem__(self, index):
            if index == 1:
                raise ValueError("frame 1 is gone")
            return room[index]

    with pytest.raises(ValueError, match="frame 1 is gone"):
        write_rosbag(Broken(), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_named(room, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file/b: cannot be written"):
        write_rosbag(room, tmp_path / "file" / "b")


def test_poses_are_interpolated_but_never_extrapolated(tmp_path, caplog):
    path = recording(tmp_path / "b", poses((150, 1.0), (250, 2.0)), (100, 200, 250, 300))
    with caplog.at_level(logging.WARNING):
        dataset = RosbagDataset(path)
    assert [f.stamp_ns // MS for f in (dataset[0], dataset[1])] == [200, 250]
    assert [dataset[i].T_map_camera[0, 3] for i in range(len(dataset))] == pytest.approx([1.5, 2.0])
    assert "2 of 4 colour images left out: 2 without a pose" in caplog.text


def test_poses_too_far_apart_are_not_interpolated(tmp_path):
    path = recording(tmp_path / "b", poses((100, 1.0), (900, 2.0)), (100, 500))
    assert len(RosbagDataset(path)) == 1
    assert len(RosbagDataset(path, RosbagConfig(max_pose_gap_s=1.0))) == 2


def test_bad_poses_are_left_out_and_counted(tmp_path, caplog):
    bad = [
        ("/camera/pose", 150 * MS, pose(150 * MS, float("nan"))),
        ("/camera/pose", 160 * MS, pose(160 * MS, 5, q=(0, 0, 0, 2))),
    ]
    path = recording(tmp_path / "b", bad + poses((100, 1.0), (200, 2.0)), (150,))
    with caplog.at_level(logging.WARNING):
        dataset = RosbagDataset(path)
    assert dataset[0].T_map_camera[0, 3] == pytest.approx(1.5)
    assert "2 poses are not rigid" in caplog.text


def test_odometry_and_a_camera_mounted_on_a_body(tmp_path):
    path = recording(tmp_path / "b", [("/odom", 0, odometry(ms * MS, x)) for ms, x in ((100, 1.0), (200, 3.0))])
    config = RosbagConfig(pose_topic="/odom", body_to_camera=(0, 0, 0.5, 0, 0, 0, 1))
    assert [f.T_map_camera[0, 3] for f in RosbagDataset(path, config)] == pytest.approx([1, 3])
    assert RosbagDataset(path, config)[0].T_map_camera[2, 3] == pytest.approx(0.5)


def test_depth_is_the_nearest_within_the_slop(tmp_path, caplog):
    messages = [
        ("/camera/color/camera_info", 0, camera_info()),
        *images(100 * MS, 115 * MS),
        *images(200 * MS, 230 * MS),
    ]
    path = write(tmp_path / "b", messages + poses((0, 0.0), (300, 3.0)))
    with caplog.at_level(logging.WARNING):
        dataset = RosbagDataset(path)
    assert len(dataset) == 1
    assert dataset[0].color[0, 0, 0] == 100
    assert "1 without a depth image" in caplog.text
    assert len(RosbagDataset(path, RosbagConfig(slop_s=0.04))) == 2


def test_stamps_out_of_order_are_sorted_and_twins_dropped(tmp_path):
    path = recording(tmp_path / "b", poses((0, 0.0), (400, 4.0)), (300, 100, 200, 200))
    stamps = [f.stamp_ns // MS for f in RosbagDataset(path, RosbagConfig(max_pose_gap_s=1))]
    assert stamps == [100, 200, 300]


def test_tf_chain_with_a_static_part(tmp_path):
    moving = [("/tf", ms * MS, transform(ms * MS, "map", "base", x)) for ms, x in ((50, 1.0), (250, 3.0))]
    fixed = [("/tf_static", 0, transform(0, "base", "camera", 10.0))]
    path = recording(tmp_path / "b", moving + fixed)
    dataset = RosbagDataset(path, RosbagConfig(pose_source="tf"))
    assert [f.T_map_camera[0, 3] for f in dataset] == pytest.approx([11.5, 12.5])
    with pytest.raises(ValueError, match="2 without a pose; frames in TF: base, camera, map"):
        RosbagDataset(path, RosbagConfig(pose_source="tf", map_frame="world"))


def test_transform_tree_goes_over_a_common_ancestor():
    def shift(x, y):
        T = np.eye(4)
        T[:2, 3] = (x, y)
        return T

    tree = TransformTree(max_gap_s=1)
    tree.add("odom", "map", 0, shift(5, 0), is_static=True)
    tree.add("/odom", "base", 0, shift(0, 0), is_static=False)
    tree.add("odom", "base", 10, shift(0, 2), is_static=False)
    np.testing.assert_allclose(tree.lookup("map", "base", 5), shift(-5, 1))
    assert tree.lookup("map", "base", 11) is None
    assert tree.lookup("map", "camera", 5) is None
    np.testing.assert_allclose(tree.lookup("base", "base", 99), np.eye(4))


def test_missing_topics_are_named_with_those_there_are(tmp_path):
    path = recording(tmp_path / "b", [])
    with pytest.raises(
        ValueError, match=r"no topic '/camera/pose' with poses; topics of the bag: .*image_raw \(Image\)"
    ):
        RosbagDataset(path)
    with pytest.raises(ValueError, match="no topic '/other' with colour images"):
        RosbagDataset(path, RosbagConfig(color_topic="/other"))


def test_intrinsics_of_another_size_and_distortion_are_refused(tmp_path):
    messages = images(100 * MS) + poses((100, 0.0))
    other = write(tmp_path / "a", [("/camera/color/camera_info", 0, camera_info(16, 12)), *messages])
    with pytest.raises(ValueError, match=r"frame 0 .*colour image: expected uint8 \(12, 16, 3\)"):
        RosbagDataset(other)[0]
    distorted = write(tmp_path / "b", [("/camera/color/camera_info", 0, camera_info(d=0.1)), *messages])
    with pytest.raises(ValueError, match="camera_info: the image is distorted"):
        RosbagDataset(distorted)


def test_labels_without_classes_are_left_out(tmp_path, caplog):
    label = ("/camera/labels", 100 * MS, image(100 * MS, "32SC1", np.full((HEIGHT, WIDTH), 5 << 16 | 3, np.int32)))
    path = recording(tmp_path / "b", [label, *poses((100, 0.0))], (100,))
    with caplog.at_level(logging.WARNING):
        dataset = RosbagDataset(path)
    assert dataset[0].labels is None
    assert "no classes on /camera/label_space" in caplog.text


def test_unreadable_classes_are_named(tmp_path):
    bad = ("/camera/label_space", 0, new("std_msgs/msg/String", '{"klasses": []}'))
    path = recording(tmp_path / "b", [bad, *poses((100, 0.0))], (100,))
    with pytest.raises(ValueError, match="b: /camera/label_space: not a readable list of classes"):
        RosbagDataset(path)


def test_unknown_encoding_names_bag_topic_and_encoding(tmp_path):
    bad = ("/camera/color/image_raw", 100 * MS, image(100 * MS, "yuv422", np.zeros((HEIGHT, WIDTH, 2), np.uint8)))
    depth = images(100 * MS)[1]
    path = write(tmp_path / "b", [("/camera/color/camera_info", 0, camera_info()), bad, depth, *poses((100, 0.0))])
    with pytest.raises(ValueError, match=r"b: /camera/color/image_raw at 100000000 ns: .*'yuv422' is not supported"):
        RosbagDataset(path)[0]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.9])
def test_truncated_bags_are_named(bags, tmp_path, storage, keep):
    path = tmp_path / "cut"
    shutil.copytree(bags / storage, path)
    file = next(f for f in path.iterdir() if f.suffix in (".mcap", ".db3"))
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ValueError, match="cut: "):
        list(RosbagDataset(path))


def test_a_topic_of_another_type_is_refused(tmp_path):
    path = recording(tmp_path / "b", [("/camera/pose", 0, camera_info())])
    with pytest.raises(ValueError, match=r"'/camera/pose' has the type sensor_msgs/msg/CameraInfo, expected geometry"):
        RosbagDataset(path)


def test_what_is_no_bag_is_named(tmp_path, bag):
    with pytest.raises(ValueError, match="nothing: no such file"):
        RosbagDataset(tmp_path / "nothing")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ValueError, match=r"file.txt: cannot be read as a rosbag"):
        RosbagDataset(tmp_path / "file.txt")
    shutil.copytree(bag, tmp_path / "half")
    next((tmp_path / "half").glob("*.mcap")).unlink()
    with pytest.raises(ValueError, match=r"half: cannot be read as a rosbag: .*missing"):
        RosbagDataset(tmp_path / "half")
